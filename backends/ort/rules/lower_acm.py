"""``graphpress::ACM`` in stock operators, so that a token costs what the learners cost that it takes.

The tokens are ordered by their number of learners once (TopK); learner j runs on the leading rows that take it (Slice);
the parts are merged from the last learner back (Slice, Add, Concat) and the order is undone by a Gather. Gathering and
scattering rows for each learner, which needs no order, costs as much as the dense layer at half the learners.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.backends import canonical
from graphpress.backends.ort import emit, moved_codes
from graphpress.backends.ort.lowering import LoweringRule
from graphpress.graph import edit
from graphpress.ops.base import DOMAIN
from graphpress.target import Target

_INTEGER = "MatMulIntegerToFloat"
_END = np.array([np.iinfo(np.int64).max])


def _apply(node: ir.Node, target: Target, shared: emit.Shared) -> bool:
    """Lower ``node`` if it is an ACM of constant weights; whether it was."""
    assert isinstance(node.graph, ir.Graph)
    learners = _learners(node)
    if learners is None or (edit.attribute(node, "int8") and _INTEGER not in target.kernels):
        return False
    emitter = _Emitter(node, node.graph, learners, target, shared)
    made = emitter.run()
    edit.remove_unused(edit.supersede(node, made))
    return True


@dataclass(frozen=True)
class _Matrix:
    """A weight of one learner: float [in, out], or int8 codes with a scale for each column."""

    array: np.ndarray
    scale: np.ndarray | None = None

    def columns(self, part: slice) -> _Matrix:
        return _Matrix(self.array[:, part], None if self.scale is None else self.scale[part])


@dataclass(frozen=True)
class _Learner:
    first: tuple[_Matrix, ...]  # one, or (activated, factor) of a gated one
    bias: tuple[np.ndarray, ...]
    second: _Matrix


def _learners(node: ir.Node) -> list[_Learner] | None:
    """The learners one by one; None where a weight is computed."""
    if any(edit.constant(v) is None for v in (*node.inputs[1:3], node.inputs[5], node.inputs[7])):
        return None
    w1, w2, b1 = _stack(node.inputs[4]), _stack(node.inputs[6]), edit.constant(node.inputs[5])
    if w1 is None or w2 is None or b1 is None:
        return None
    if edit.attribute(node, "int8") and any(m.scale is None for m in (*w1, *w2)):
        return None
    if not edit.attribute(node, "int8"):
        w1, w2 = ([_floats(m) for m in w] for w in (w1, w2))
    hidden, gated = w2[0].array.shape[0], bool(edit.attribute(node, "gated"))
    parts = [slice(0, hidden), slice(hidden, 2 * hidden)] if gated else [slice(0, hidden)]
    return [
        _Learner(tuple(m.columns(p) for p in parts), tuple(b[p] for p in parts), last)
        for m, b, last in zip(w1, b1, w2, strict=True)
    ]


def _stack(value: ir.Value | None) -> list[_Matrix] | None:
    """The weights of all learners, [N, in, out]: floats, or codes with one scale for each learner and column."""
    array = edit.constant(value)
    if array is not None:
        return [_Matrix(a) for a in array]
    w = canonical.weight(value)
    if w is None or w.dtype != ir.DataType.INT8 or not w.symmetric or w.axis != 1 or w.block < w.codes.shape[1]:
        return None
    return [_Matrix(c, s[0]) for c, s in zip(w.codes, w.scale, strict=True)]


def _floats(m: _Matrix) -> _Matrix:
    return m if m.scale is None else _Matrix(m.array.astype(np.float32) * m.scale)


@dataclass(frozen=True)
class _Rows:
    """Rows of an operand: floats, or unsigned codes with a scale for each row."""

    values: ir.Value
    scale: ir.Value | None = None


class _Emitter:
    def __init__(
        self, node: ir.Node, graph: ir.Graph, learners: list[_Learner], target: Target, shared: emit.Shared
    ) -> None:
        self.node, self.graph, self.learners, self.target, self.shared = node, graph, learners, target, shared
        self.least = int(edit.attribute(node, "min_learners"))
        self.activation = str(edit.attribute(node, "activation"))
        self.int8 = bool(edit.attribute(node, "int8"))

    def op(self, kind: str, *inputs: ir.Value | None, domain: str = "", **attributes: object) -> ir.Value:
        return emit.helper_node(kind, inputs, self.node, attributes, domain=domain)

    def const(self, array: np.ndarray, name: str) -> ir.Value:
        """A small constant, shared by all ACMs; a large one is this node's own."""
        if array.size > 8:
            return edit.add_const(self.graph, np.ascontiguousarray(array), f"{self.node.name}.{name}")
        key = ("acm", array.dtype.str, array.shape, array.tobytes())
        return self.shared.const(self.graph, key, f"acm_{name}", lambda: array)

    def ints(self, *numbers: int) -> ir.Value:
        return self.const(np.array(numbers, np.int64), "ints")

    def run(self) -> tuple[ir.Value | None, ir.Value | None]:
        x, _, _, _, w1, _, w2, _ = self.node.inputs
        assert x is not None and w1 is not None and w2 is not None
        width, out = self.learners[0].first[0].array.shape[0], self.learners[0].second.array.shape[1]
        lead = self.op("Shape", x, end=-1)
        flat = self.op("Reshape", x, self.ints(-1, width))
        taken = self.counts(flat)
        order, back, rows = self.order(taken)
        total = self.merge(self.operand(self.op("Gather", flat, order, axis=0)), rows, taken, out)
        y = self.op("Gather", total, back, axis=0)
        y = self.op("Reshape", y, self.op("Concat", lead, self.ints(out), axis=0), allowzero=1)
        wanted = self.node.outputs[1].uses() or self.node.outputs[1].is_graph_output()
        return y, self.op("Reshape", taken, lead, allowzero=1) if wanted else None

    def counts(self, flat: ir.Value) -> ir.Value:
        """[tokens]: how many learners each takes."""
        _, gate, gate_bias, price, *_ = self.node.inputs
        bias = edit.constant(gate_bias)
        assert price is not None and bias is not None
        levels = self.const(np.arange(len(bias), dtype=np.float32), "levels")
        key = ("acm_cost", price.name, len(bias))
        cost = self.shared.once(key, lambda: self.op("Mul", levels, price))
        scores = self.op("Add", self.op("MatMul", flat, gate), gate_bias)
        chosen = self.op("ArgMax", self.op("Sub", scores, cost), axis=-1, keepdims=0)
        return self.op("Add", chosen, self.ints(self.least)) if self.least else chosen

    def order(self, taken: ir.Value) -> tuple[ir.Value, ir.Value, list[ir.Value]]:
        """(the tokens, those with most learners first; the way back; how many take each learner, [1] each)."""
        count = self.op("Shape", taken)
        order = self._top(taken, count, largest=1)
        back = self._top(order, count, largest=0)
        column = self.op("Unsqueeze", taken, self.ints(1))
        takes = self.op("Greater", column, self.ints(*range(len(self.learners))))
        sums = self.op("ReduceSum", self.op("Cast", takes, to=ir.DataType.INT64), self.ints(0), keepdims=0)
        rows = [self.op("Slice", sums, self.ints(i), self.ints(i + 1)) for i in range(self.least, len(self.learners))]
        return order, back, [count] * self.least + rows

    def _top(self, values: ir.Value, count: ir.Value, largest: int) -> ir.Value:
        top = edit.new_node(
            "TopK", [values, count], {"largest": largest, "sorted": 1}, before=self.node, origin=self.node, outputs=2
        )
        return top.outputs[1]

    def merge(self, x: _Rows, rows: list[ir.Value], taken: ir.Value, out: int) -> ir.Value:
        """[tokens, out] in the order of ``x``: from the last learner, on the fewest rows, back to the first."""
        start, end = self.ints(0), self.const(_END, "end")
        total: ir.Value | None = None
        for i in reversed(range(len(self.learners))):
            part = x if i < self.least else self.leading(x, rows[i])
            y = self.learner(part, i)
            if total is None:
                total = y
            elif i + 1 < self.least:
                total = self.op("Add", y, total)
            else:
                head = self.op("Add", self.op("Slice", y, start, rows[i + 1]), total)
                total = self.op("Concat", head, self.op("Slice", y, rows[i + 1], end), axis=0)
        assert total is not None
        if not self.least:
            left = self.op("Sub", self.op("Shape", taken), rows[0])
            none = self.op("ConstantOfShape", self.op("Concat", left, self.ints(out), axis=0))
            total = self.op("Concat", total, none, axis=0)
        return self.biased(total, edit.constant(self.node.inputs[7]), "b2")

    def leading(self, x: _Rows, rows: ir.Value) -> _Rows:
        cut: Callable[[ir.Value], ir.Value] = lambda v: self.op("Slice", v, self.ints(0), rows)  # noqa: E731
        return _Rows(cut(x.values), None if x.scale is None else cut(x.scale))

    def learner(self, x: _Rows, i: int) -> ir.Value:
        own = self.learners[i]
        h = [self.product(x, w, f"w1_{i}_{j}") for j, w in enumerate(own.first)]
        h = [self.biased(v, b, f"b1_{i}_{j}") for j, (v, b) in enumerate(zip(h, own.bias, strict=True))]
        hidden = self.activated(h[0])
        if len(h) > 1:
            hidden = self.op("Mul", hidden, h[1])
        return self.product(self.operand(hidden), own.second, f"w2_{i}")

    def biased(self, x: ir.Value, bias: np.ndarray | None, name: str) -> ir.Value:
        return self.op("Add", x, self.const(bias, name)) if bias is not None and bias.any() else x

    def activated(self, x: ir.Value) -> ir.Value:
        match self.activation:
            case "relu":
                return self.op("Relu", x)
            case "silu":
                return self.op("Mul", x, self.op("Sigmoid", x))
            case "gelu":
                return self.op("Gelu", x)
            case "gelu-tanh":
                return self.op("Gelu", x, approximate="tanh")
            case "quick-gelu":
                steep = self.op("Mul", x, self.const(np.array(1.702, np.float32), "slope"))
                return self.op("Mul", x, self.op("Sigmoid", steep))
            case "relu-squared":
                return self.op("Mul", self.op("Relu", x), x)
            case "tanh":
                return self.op("Tanh", x)
            case "sigmoid":
                return self.op("Sigmoid", x)
            case "hard-swish":
                return self.op("HardSwish", x)
        return x

    def operand(self, x: ir.Value) -> _Rows:
        """What a product reads; with int8 learners the row's codes, unsigned: the signed product runs far slower."""
        if not self.int8:
            return _Rows(x)
        one = self.const(np.array(1, np.float32), "one")
        largest = self.op("ReduceMax", self.op("Abs", x), self.ints(-1), keepdims=1)
        raw = self.op("Div", largest, self.const(np.array(127, np.float32), "largest_code"))
        scale = self.op("Max", raw, self.const(np.array(np.finfo(np.float32).tiny), "smallest_scale"))
        middle = self.const(np.array(128, np.uint8), "middle")
        return _Rows(self.op("QuantizeLinear", self.op("Div", x, scale), one, middle), scale)

    def product(self, x: _Rows, w: _Matrix, name: str) -> ir.Value:
        if x.scale is None or w.scale is None:
            return self.op("MatMul", x.values, self.const(w.array, name))
        moved = self.target.saturates
        weight = self.const(moved_codes.moved(w.array) if moved else w.array, name)
        one, middle = self.const(np.array(1, np.float32), "one"), self.const(np.array(128, np.uint8), "middle")
        scale = self.const(w.scale.astype(np.float32), f"{name}_scale")
        inputs = [x.values, weight, one, scale, middle, *([middle] if moved else [])]
        y = self.op(_INTEGER, *inputs, domain=emit.CONTRIB)
        return self.op("Mul", y, x.scale)


RULE = LoweringRule("acm", 10, _apply, ops=("ACM",), domain=DOMAIN)  # int8 learners also want a kernel of integers
