"""Products with constant weights that are written in another way, as MatMul, which passes and kernels know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import edit
from graphpress.passes.clean.constants import graph_nodes
from graphpress.types import Numerics


@dataclass(frozen=True)
class ToMatmul(Pass):
    """Write an Einsum of a computed tensor and a constant one as MatMul, with Transpose and Reshape around it where the
    axes need it; and let a MatMul whose constant is one matrix with axes of 1 in front read the matrix.

    An Einsum that is no product of matrices stays, and so does one whose input has no known rank.
    """

    name: ClassVar[str] = "to-matmul"
    numerics: ClassVar[Numerics] = Numerics.CLOSE

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        for node in graph_nodes(model):
            if node.domain or node.op_type not in ("Einsum", "MatMul") or not isinstance(node.graph, ir.Graph):
                continue
            report.changed += _one_matrix(node) if node.op_type == "MatMul" else _einsum(node)


def _one_matrix(node: ir.Node) -> bool:
    """[1, .., K, N] as [K, N]: the same where the other operand has as many axes."""
    x, w = node.inputs
    array = edit.constant_tensor(w)
    if x is None or w is None or array is None or x.shape is None or edit.is_constant(x):
        return False
    shape = array.shape.numpy()
    if not 2 < len(shape) <= len(x.shape) or any(d != 1 for d in shape[:-2]):
        return False
    edit.set_constant(node, 1, array.numpy().reshape(shape[-2:]), "weight")
    return True


@dataclass(frozen=True)
class _Terms:
    """Labels of an Einsum of x and a weight, as strings of letters: those that both have and the result too, that are
    summed over, that only x has, that only the weight has."""

    x: str
    weight: str
    out: str

    @property
    def batch(self) -> str:
        return "".join(c for c in self.weight if c in self.x and c in self.out)

    @property
    def summed(self) -> str:
        return "".join(c for c in self.x if c in self.weight and c not in self.out)

    @property
    def rows(self) -> str:
        return "".join(c for c in self.x if c not in self.weight)

    @property
    def columns(self) -> str:
        return "".join(c for c in self.out if c not in self.x)

    @property
    def order(self) -> str:
        """Of the axes of x before the product: what is broadcast, the batch, rows, what is summed over."""
        return self.rows[:-1] + self.batch + self.rows[-1:] + self.summed

    @property
    def product(self) -> bool:
        """Whether it is a product of matrices, with rows, columns and sums."""
        plain = all(len(set(t)) == len(t) for t in (self.x, self.weight, self.out))
        whole = set(self.out) == set(self.rows + self.batch + self.columns)
        own = set(self.weight) == set(self.batch + self.summed + self.columns)
        return plain and whole and own and bool(self.summed and self.columns and self.rows)


def _einsum(node: ir.Node) -> bool:
    if len(node.inputs) != 2 or sum(map(edit.is_constant, node.inputs)) != 1:
        return False
    slot = 1 if edit.is_constant(node.inputs[1]) else 0
    x, weight = node.inputs[1 - slot], edit.constant(node.inputs[slot])
    assert x is not None and weight is not None
    terms = _terms(str(edit.attribute(node, "equation")), slot, x, weight)
    if terms is None or not terms.product:
        return False
    sizes = dict(zip(terms.weight, weight.shape, strict=True))
    _write(node, x, weight, terms, sizes, slot)
    return True


def _terms(equation: str, slot: int, x: ir.Value, weight: np.ndarray) -> _Terms | None:
    """The labels, with a letter for each axis that an ellipsis of x stands for; None where that is not known."""
    left, arrow, out = equation.replace(" ", "").partition("->")
    parts = left.split(",")
    if not arrow or len(parts) != 2 or x.shape is None:
        return None
    mine, other = parts[1 - slot], parts[slot]
    more = len(x.shape) - len(mine.replace("...", ""))
    letters = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation][:more]
    if "..." in other or more < 0 or (more and "..." not in mine) or len(letters) != more:
        return None
    mine, out = (t.replace("...", "".join(letters)) for t in (mine, out))
    return _Terms(mine, other, out) if (len(mine), len(other)) == (len(x.shape), weight.ndim) else None


def _write(node: ir.Node, x: ir.Value, weight: np.ndarray, terms: _Terms, sizes: dict[str, int], slot: int) -> None:
    graph, old = node.graph, list(node.inputs)
    assert isinstance(graph, ir.Graph)
    value = _transposed(node, x, _places(terms.x, terms.order))
    if len(terms.summed) > 1:
        kept = [0] * (len(terms.order) - len(terms.summed))
        value = _reshaped(node, value, [*kept, int(np.prod([sizes[c] for c in terms.summed]))])
    axes = terms.batch + terms.summed + terms.columns
    dims = [*(sizes[c] for c in terms.batch), -1, int(np.prod([sizes[c] for c in terms.columns]))]
    matrix = weight.transpose(_places(terms.weight, axes)).reshape(dims)
    source = node.inputs[slot]
    assert source is not None
    held = edit.add_const(graph, ir.Tensor(np.ascontiguousarray(matrix)), f"{source.name}_matrix")
    product = edit.new_node("MatMul", [value, held], before=node, origin=node)
    result = product.outputs[0]
    if len(terms.columns) > 1:
        kept = [0] * (len(terms.order) - len(terms.summed))
        result = _reshaped(node, result, [*kept, *(sizes[c] for c in terms.columns)])
    given = terms.order[: len(terms.order) - len(terms.summed)] + terms.columns
    result = _transposed(node, result, _places(given, terms.out))
    name, metadata = node.name, dict(node.metadata_props)
    edit.supersede(node, [result], metadata=False)
    for made in (m for m in (result.producer(), product) if m is not None and m.name == name):
        made.name = edit.fresh_name(graph, f"{name}_out")
    product.name = name
    product.metadata_props.update(metadata)
    edit.remove_unused(old)


def _places(labels: str, order: str) -> list[int]:
    return [labels.index(c) for c in order]


def _transposed(node: ir.Node, value: ir.Value, perm: Sequence[int]) -> ir.Value:
    if list(perm) == sorted(perm):
        return value
    made = edit.new_node("Transpose", [value], {"perm": list(perm)}, before=node, origin=node)
    if value.type is not None:
        made.outputs[0].type = value.type
    return made.outputs[0]


def _reshaped(node: ir.Node, value: ir.Value, shape: Sequence[int]) -> ir.Value:
    """0 keeps the size of its axis."""
    assert isinstance(node.graph, ir.Graph)
    dims = edit.add_const(node.graph, np.array(shape, np.int64), f"{node.name}_shape")
    made = edit.new_node("Reshape", [value, dims], before=node, origin=node)
    return made.outputs[0]
