"""Norm sites: LayerNormalization, RMSNormalization, and the same spelled out, over the last axis."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.graph.readers import only_reader
from graphpress.passes.structure.channels.lanes import dims

FUSED = {"LayerNormalization": True, "RMSNormalization": False, "SimplifiedLayerNormalization": False}
_SQUARED = ("ReduceMean", "ReduceSum")
_ON_SCALAR = ("Add", "Sqrt", "Reciprocal", "Div", "Pow", "Max", "Clip", "Mul", "Cast")
_LONGEST = 8  # nodes between the mean of squares and the product with what was squared


@dataclass(frozen=True, eq=False)
class Norm:
    """``gain * x / rms(x) + bias`` over the last axis, of the centred ``x`` if ``centred``.

    Attributes:
        node: The fused operator, or the Mul or Div that normalizes.
        input: x.
        output: What it gives, gain and bias included.
        centred: LayerNormalization: the mean is taken off first.
        nodes: All nodes between x and the output.
        gain: Node and input that hold the gain [width], or None.
        bias: Node and input that hold the bias [width], or None.
        centring: The Sub that takes the mean off, where it is spelled out.
    """

    node: ir.Node
    input: ir.Value
    output: ir.Value
    centred: bool
    nodes: frozenset[ir.Node]
    gain: tuple[ir.Node, int] | None = None
    bias: tuple[ir.Node, int] | None = None
    centring: ir.Node | None = None

    @property
    def name(self) -> str:
        return self.node.name or "?"

    @property
    def fused(self) -> bool:
        """Whether one operator does it all."""
        return self.node.op_type in FUSED

    @property
    def width(self) -> int | None:
        shape = dims(self.input)
        last = shape[-1] if shape else None
        return last if isinstance(last, int) else None

    def gain_array(self) -> np.ndarray | None:
        """float64 [width], or None where there is no gain."""
        return _wide(self.gain)

    def bias_array(self) -> np.ndarray | None:
        """float64 [width], or None where there is no bias."""
        return _wide(self.bias)

    def fixed(self) -> str:
        """Why it does not turn with what it reads, or ""."""
        if self.centred:
            return f"{self.name} is a LayerNormalization still"
        return "" if self.uniform() else f"{self.name} has a gain of its own still"

    def uniform(self) -> bool:
        """Whether all channels have the same gain, and no bias stands on it."""
        gain, bias = self.gain_array(), self.bias_array()
        return (gain is None or bool((gain == gain[0]).all())) and (bias is None or not bias.any())


def _wide(place: tuple[ir.Node, int] | None) -> np.ndarray | None:
    array = edit.constant(place[0].inputs[place[1]]) if place is not None else None
    return None if array is None else array.astype(np.float64).reshape(-1)


def find_norms(nodes: Iterable[ir.Node]) -> list[Norm]:
    """The norm sites among some nodes, in their order."""
    found = (_fused(n) if n.op_type in FUSED else _spelled(n) if _is(n, *_STARTS) else None for n in nodes)
    return [norm for norm in found if norm is not None]


_STARTS = (*_SQUARED, "ReduceSumSquare", "ReduceL2")


def _fused(node: ir.Node) -> Norm | None:
    x, out = node.inputs[0], node.outputs[0]
    shape = dims(x) if node.domain in ("", "com.microsoft") else None
    if x is None or shape is None or not isinstance(shape[-1], int):
        return None
    over_last = edit.attribute(node, "axis", -1) in (-1, len(shape) - 1)
    alone = not any(o.uses() or o.is_graph_output() for o in node.outputs[1:])
    constants = [v for v in node.inputs[1:] if v is not None]
    if not over_last or not alone or not all(_vector(v, shape[-1]) for v in constants):
        return None
    gain, bias = ((node, i) if len(node.inputs) > i and node.inputs[i] is not None else None for i in (1, 2))
    return Norm(node, x, out, FUSED[node.op_type], frozenset([node]), gain, bias)


def _spelled(start: ir.Node) -> Norm | None:
    """From the mean of squares on: some steps on one number a row, then the product with what was squared."""
    d = _squared(start)
    shape = dims(d)
    if d is None or shape is None or not isinstance(shape[-1], int) or not _over_last(start, len(shape)):
        return None
    nodes = {start}
    if start.op_type in _SQUARED and (square := start.inputs[0].producer() if start.inputs[0] else None) is not None:
        nodes.add(square)
    last = _multiplied(start, d, nodes)
    if last is None:
        return None
    x, centring = _centred(d, nodes)
    out, node = last.outputs[0], last
    gain = _behind(out, "Mul", shape[-1])
    if gain is not None:
        out = gain[0].outputs[0]
    bias = _behind(out, "Add", shape[-1])
    if bias is not None:
        out = bias[0].outputs[0]
    nodes |= {n for n, _ in (p for p in (gain, bias) if p is not None)}
    return Norm(node, x, out, centring is not None, frozenset(nodes), gain, bias, centring)


def _squared(start: ir.Node) -> ir.Value | None:
    """What is squared and summed."""
    if start.op_type not in _SQUARED:
        return start.inputs[0]
    square = start.inputs[0].producer() if start.inputs[0] is not None else None
    if square is None or not _is(square, "Mul", "Pow") or len(square.outputs[0].uses()) != 1:
        return None
    if square.op_type == "Mul":
        return square.inputs[0] if square.inputs[0] is square.inputs[1] else None
    power = edit.constant(square.inputs[1])
    return square.inputs[0] if power is not None and power.size == 1 and float(power.reshape(-1)[0]) == 2 else None


def _multiplied(start: ir.Node, d: ir.Value, nodes: set[ir.Node]) -> ir.Node | None:
    """The Mul or Div of ``d`` with what the steps make of the mean; adds the nodes on the way."""
    value = start.outputs[0]
    for _ in range(_LONGEST):
        if len(value.uses()) != 1 or value.is_graph_output():
            return None
        ((user, slot),) = value.uses()
        if not _is(user, *_ON_SCALAR) or user.graph is not start.graph:
            return None
        others = [v for i, v in enumerate(user.inputs) if i != slot and v is not None]
        nodes.add(user)
        if user.op_type in ("Mul", "Div") and others == [d]:
            return user if user.op_type == "Mul" or slot == 1 else None
        if not all(_scalar(v) for v in others):
            return None
        value = user.outputs[0]
    return None


def _centred(d: ir.Value, nodes: set[ir.Node]) -> tuple[ir.Value, ir.Node | None]:
    """(x, the Sub) where ``d = x - mean(x)`` is read by this norm alone, else (d, None)."""
    sub = d.producer()
    mean = sub.inputs[1].producer() if sub is not None and _is(sub, "Sub") and sub.inputs[1] is not None else None
    shape = dims(d)
    if sub is None or mean is None or shape is None or mean.op_type != "ReduceMean" or sub.inputs[0] is None:
        return d, None
    alone = len(mean.outputs[0].uses()) == 1 and all(u.node in nodes for u in d.uses()) and not d.is_graph_output()
    if mean.inputs[0] is not sub.inputs[0] or not alone or not _over_last(mean, len(shape)):
        return d, None
    nodes |= {sub, mean}
    return sub.inputs[0], sub


def _behind(value: ir.Value, op_type: str, width: int) -> tuple[ir.Node, int] | None:
    """The Mul or Add of a constant vector that alone reads ``value``, and the slot of the vector."""
    found = only_reader(value, op_type)
    if found is None or not _vector(found[0].inputs[1 - found[1]], width):
        return None
    return found[0], 1 - found[1]


def _over_last(node: ir.Node, rank: int) -> bool:
    if not edit.attribute(node, "keepdims", 1):
        return False
    axes = edit.constant(node.inputs[1]) if len(node.inputs) > 1 else edit.attribute(node, "axes")
    return axes is not None and [int(a) for a in np.ravel(axes)] in ([-1], [rank - 1])


def _vector(value: ir.Value | None, width: int) -> bool:
    tensor = edit.constant_tensor(value)
    return tensor is not None and tensor.size == width and tensor.shape.numpy()[-1] == width


def _scalar(value: ir.Value) -> bool:
    tensor = edit.constant_tensor(value)
    return tensor is not None and tensor.size == 1


def _is(node: ir.Node, *kinds: str) -> bool:
    return node.domain == "" and node.op_type in kinds
