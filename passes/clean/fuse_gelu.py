"""Find Gelu where it is spelled out, whatever the order of its factors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import edit
from graphpress.passes.clean.constants import graph_nodes, number
from graphpress.types import Numerics

_OPSET = 20


@dataclass(frozen=True)
class FuseGelu(Pass):
    """Replace ``x / 2 * (1 + erf(x / sqrt(2)))`` and its tanh approximation by Gelu (opset 20 and later)."""

    name: ClassVar[str] = "fuse-gelu"
    numerics: ClassVar[Numerics] = Numerics.CLOSE

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        for node in graph_nodes(model):
            if node.op_type not in ("Mul", "Div") or node.domain != "":
                continue
            found = _gelu(node.outputs[0]) if node.graph is not None else None
            if found is None:
                continue
            if edit.opset(model) < _OPSET:
                report.skip(node, f"Gelu needs opset {_OPSET}")
                continue
            x, approximate = found
            inputs = list(node.inputs)
            made = edit.new_node("Gelu", [x], {"approximate": approximate}, before=node, origin=node)
            edit.like(made.outputs[0], node.outputs[0])
            edit.replace(node.outputs[0], made.outputs[0])
            edit.remove([node])
            edit.remove_unused(inputs)
            report.changed += 1


def _gelu(value: ir.Value) -> tuple[ir.Value, str] | None:
    """(x, "none" or "tanh") if ``value`` is Gelu of x."""
    coefficient, values = _factors(value, root=True)
    if len(values) != 2 or not _near(coefficient, 0.5):
        return None
    for x, other in (values, values[::-1]):
        inner = _one_plus(other)
        if inner is not None and inner.op_type == "Erf" and _is_scaled(inner.inputs[0], x, math.sqrt(0.5)):
            return x, "none"
        if inner is not None and inner.op_type == "Tanh" and _is_cubic(inner.inputs[0], x):
            return x, "tanh"
    return None


def _one_plus(value: ir.Value) -> ir.Node | None:
    """The node that 1 is added to."""
    add = _inner(value, "Add")
    if add is None:
        return None
    for slot in (0, 1):
        if number(add, slot) == 1:
            return _inner(add.inputs[1 - slot])
    return None


def _is_scaled(value: ir.Value | None, x: ir.Value, by: float) -> bool:
    coefficient, values = _factors(value)
    return len(values) == 1 and values[0] is x and _near(coefficient, by)


def _is_cubic(value: ir.Value | None, x: ir.Value) -> bool:
    """``sqrt(2 / pi) * (x + 0.044715 * x ** 3)``, also with ``x`` taken out of the brackets."""
    coefficient, values = _factors(value)
    if not _near(coefficient, math.sqrt(2 / math.pi)):
        return False
    add = next((n for v in values if (n := _inner(v, "Add")) is not None), None)
    if add is None:
        return False
    if len(values) == 1:
        parts = [a for a in add.inputs if a is not x]
        return len(parts) == 1 and _is_power(parts[0], x, 3)
    parts = [a for i, a in enumerate(add.inputs) if number(add, i) != 1]
    return len(values) == 2 and any(v is x for v in values) and len(parts) == 1 and _is_power(parts[0], x, 2)


def _is_power(value: ir.Value | None, x: ir.Value, power: int) -> bool:
    """``0.044715 * x ** power``, as products or Pow."""
    coefficient, values = _factors(value)
    exponent = 0.0
    for factor in values:
        node = _inner(factor, "Pow")
        if factor is x:
            exponent += 1
        elif node is not None and node.inputs[0] is x:
            exponent += number(node, 1) or math.nan
        else:
            return False
    return exponent == power and _near(coefficient, 0.044715)


def _factors(value: ir.Value | None, root: bool = False) -> tuple[float, list[ir.Value]]:
    """``value`` as a number times values: products and quotients by numbers are taken apart.

    A product that others read as well is one factor, unless it is the ``root``.
    """
    node = value.producer() if root and value is not None else _inner(value)
    if node is None or node.op_type not in ("Mul", "Div") or node.domain != "":
        return 1.0, [] if value is None else [value]
    numbers = [number(node, slot) for slot in (0, 1)]
    if node.op_type == "Div":
        if not numbers[1]:
            return 1.0, [node.outputs[0]]
        coefficient, values = _factors(node.inputs[0])
        return coefficient / numbers[1], values
    coefficient, values = 1.0, []
    for operand, known in zip(node.inputs, numbers, strict=True):
        more, others = _factors(operand) if known is None else (known, [])
        coefficient, values = coefficient * more, values + others
    return coefficient, values


def _inner(value: ir.Value | None, op_type: str | None = None) -> ir.Node | None:
    """The maker of a value that has one reader only, if it is of that type."""
    node = value.producer() if value is not None else None
    if value is None or node is None or node.domain != "" or len(value.uses()) != 1 or value.is_graph_output():
        return None
    return node if op_type in (None, node.op_type) else None


def _near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-4)
