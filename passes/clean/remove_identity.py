"""Remove nodes that give back what they were given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import edit
from graphpress.passes.clean.constants import ints, static
from graphpress.types import Numerics

_FAR = 2**31 - 1  # exporters write "to the end" as INT32_MAX or INT64_MAX


@dataclass(frozen=True)
class RemoveIdentity(Pass):
    """Remove Identity, Dropout at inference, casts to the same type, and reshapes, transposes, slices, pads, sums and
    products that change nothing.

    A graph output keeps its name; an Identity stays where an input, a constant or another output must be made public.
    """

    name: ClassVar[str] = "remove-identity"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        for node in edit.nodes(model):
            rule = _RULES.get(node.op_type) if node.domain == "" else None
            if rule is None or any(a.is_ref() for a in node.attributes.values()):
                continue
            source = rule(node)
            if source is None or any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
                continue
            if not can_replace(node.outputs[0], source):
                continue
            forward(node, source)
            report.changed += 1


def can_replace(value: ir.Value, by: ir.Value) -> bool:
    """Whether ``by`` can take over the public name of ``value``, if it has one."""
    if not value.is_graph_output():
        return True
    return by.producer() is not None and not by.is_graph_output() and by.graph is value.graph


def forward(node: ir.Node, source: ir.Value) -> None:
    """Let the readers of ``node`` read ``source``, and remove the node and what only it needed."""
    value = node.outputs[0]
    if value.is_graph_output():
        source.type, source.shape = value.type or source.type, value.shape or source.shape
    source.type = source.type or value.type
    source.shape = source.shape or value.shape
    inputs = list(node.inputs)
    edit.replace(value, source)
    edit.remove([node])
    edit.remove_unused(inputs)


def _always(node: ir.Node) -> ir.Value | None:
    return node.inputs[0]


def _dropout(node: ir.Node) -> ir.Value | None:
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return node.inputs[0]
    training = edit.constant(node.inputs[2])
    return node.inputs[0] if training is not None and not training.any() else None


def _cast(node: ir.Node) -> ir.Value | None:
    source = node.inputs[0]
    same = source is not None and source.dtype is not None and source.dtype == node.attributes.get_int("to", 0)
    return source if same else None


def _cast_like(node: ir.Node) -> ir.Value | None:
    source, like = node.inputs
    same = source is not None and like is not None and source.dtype is not None and source.dtype == like.dtype
    return source if same else None


def _reshape(node: ir.Node) -> ir.Value | None:
    """The target repeats the input's dimensions; one of them may be left to be worked out."""
    source, target = node.inputs[0], ints(node, 1, "shape")
    if source is None or source.shape is None or target is None or len(target) != len(source.shape):
        return None
    keeps_zero = not node.attributes.get_int("allowzero", 0)
    free = 0
    for dim, wanted in zip(source.shape, target, strict=True):
        if not (wanted == dim or (wanted == 0 and keeps_zero)):
            free += 1
    empty_possible = any(not isinstance(d, int) or d == 0 for d in source.shape)
    worked_out = free == 1 and -1 in target and (not empty_possible or _others_positive(source.shape, target))
    return source if free == 0 or worked_out else None


def _others_positive(shape: ir.Shape, target: list[int]) -> bool:
    """Dimensions beside the one marked -1 are static and not zero, so the division that finds it is sound."""
    return all(isinstance(d, int) and d > 0 for d, t in zip(shape, target, strict=True) if t != -1)


def _flatten(node: ir.Node) -> ir.Value | None:
    source = node.inputs[0]
    same = source is not None and source.shape is not None and len(source.shape) == 2
    return source if same and node.attributes.get_int("axis", 1) in (1, -1) else None


def _expand(node: ir.Node) -> ir.Value | None:
    source, target = node.inputs[0], ints(node, 1)
    if source is None or source.shape is None or target is None or len(target) > len(source.shape):
        return None
    dims = list(source.shape)[len(source.shape) - len(target) :]
    return source if all(t in (1, d) for t, d in zip(target, dims, strict=True)) else None


def _tile(node: ir.Node) -> ir.Value | None:
    repeats = ints(node, 1)
    return node.inputs[0] if repeats is not None and all(r == 1 for r in repeats) else None


def _transpose(node: ir.Node) -> ir.Value | None:
    perm, source = node.attributes.get_ints("perm"), node.inputs[0]
    if perm is None:
        return source if source is not None and source.shape is not None and len(source.shape) < 2 else None
    return source if list(perm) == list(range(len(perm))) else None


def _slice(node: ir.Node) -> ir.Value | None:
    source, starts, ends = node.inputs[0], ints(node, 1, "starts"), ints(node, 2, "ends")
    if source is None or starts is None or ends is None or any(starts):
        return None
    if len(node.inputs) > 4 and ints(node, 4) != [1] * len(starts):
        return None
    axes = ints(node, 3, "axes")
    if axes is None:
        if len(node.inputs) > 3 and node.inputs[3] is not None:
            return None
        axes = list(range(len(starts)))
    dims = [source.shape[a] if source.shape is not None else None for a in axes]
    return source if all(e >= (d if isinstance(d, int) else _FAR) for e, d in zip(ends, dims, strict=True)) else None


def _pad(node: ir.Node) -> ir.Value | None:
    pads = ints(node, 1, "pads")
    return node.inputs[0] if pads is not None and not any(pads) else None


def _single(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _neutral(number: float, either_side: bool) -> Callable[[ir.Node], ir.Value | None]:
    """The rule of an operator that has a neutral element, on the right or on either side."""

    def rule(node: ir.Node) -> ir.Value | None:
        a, b = node.inputs
        for source, other in ((a, b), (b, a)) if either_side else ((a, b),):
            if source is not None and _keeps_shape(source, other) and np.all(edit.constant(other) == number):
                return source
        return None

    return rule


def _keeps_shape(source: ir.Value, other: ir.Value | None) -> bool:
    """``other`` is a constant that broadcasts to the shape of ``source``."""
    tensor = edit.constant_tensor(other)
    if tensor is None or tensor.dtype == ir.DataType.STRING:
        return False
    dims = list(static(tensor.shape))
    if not dims:
        return True
    if source.shape is None or len(dims) > len(source.shape):
        return False
    return all(d in (1, s) for d, s in zip(reversed(dims), reversed(list(source.shape)), strict=False))


_RULES: dict[str, Callable[[ir.Node], ir.Value | None]] = {
    "Add": _neutral(0, either_side=True),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Concat": _single,
    "Div": _neutral(1, either_side=False),
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _flatten,
    "Identity": _always,
    "Max": _single,
    "Mean": _single,
    "Min": _single,
    "Mul": _neutral(1, either_side=True),
    "Pad": _pad,
    "Pow": _neutral(1, either_side=False),
    "Reshape": _reshape,
    "Slice": _slice,
    "Sub": _neutral(0, either_side=False),
    "Sum": _single,
    "Tile": _tile,
    "Transpose": _transpose,
}
