"""Outputs of a linear layer, or a part of its channels, behind what only rearranges other axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.graph.movement import Way, moves
from graphpress.passes.structure.channels.lanes import dims, size
from graphpress.passes.structure.layers.linear import Linear


@dataclass(frozen=True, eq=False)
class LinearRows:
    """Some of the outputs of a Linear as a layer of their own, to be read only: gate or up of a fused product.

    Attributes:
        layer: The whole layer [out, in].
        rows: int64 [hidden]: which of its outputs, in order.
    """

    layer: Linear
    rows: np.ndarray

    @property
    def node(self) -> ir.Node:
        """The product of the whole layer."""
        return self.layer.node

    @property
    def add(self) -> ir.Node | None:
        """The Add of the whole layer's bias."""
        return self.layer.add

    @property
    def input(self) -> ir.Value:
        """[..., in]."""
        return self.layer.input

    @property
    def weight_value(self) -> ir.Value:
        """The constant of the whole layer."""
        return self.layer.weight_value

    @property
    def shape(self) -> tuple[int, ...]:
        """[hidden, in]."""
        return len(self.rows), self.layer.shape[1]

    def weight(self) -> np.ndarray:
        """[hidden, in]."""
        return self.layer.weight()[self.rows]

    def bias(self) -> np.ndarray | None:
        """[hidden], or None where there is none."""
        bias = self.layer.bias()
        return None if bias is None else bias[self.rows]


Part: TypeAlias = Linear | LinearRows


@dataclass(frozen=True)
class Reached:
    """A layer that gives a value, and the nodes from its product to that value."""

    part: Part
    nodes: tuple[ir.Node, ...]


def through(value: ir.Value) -> tuple[ir.Value, tuple[ir.Node, ...]]:
    """What gives ``value`` before reshapes of other axes than the last, dropout and identities; those nodes."""
    nodes: list[ir.Node] = []
    while (node := value.producer()) is not None and _keeps_channels(node) and node.inputs[0] is not None:
        nodes.append(node)
        value = node.inputs[0]
    return value, tuple(nodes)


def _keeps_channels(node: ir.Node) -> bool:
    if node.op_type == "Dropout" and node.domain == "":
        training = node.inputs[2] if len(node.inputs) > 2 else None
        array = edit.constant(training)
        return training is None or (array is not None and not array.any())
    if not moves(node, Way.VIEW):
        return False
    last = size(node.outputs[0], -1)
    return node.op_type == "Identity" or (last is not None and last == size(node.inputs[0], -1))


def reached(value: ir.Value, layers: Mapping[ir.Value, Linear]) -> Reached | None:
    """The layer of ``layers`` (by their outputs) that gives a value, or the rows of one."""
    value, nodes = through(value)
    if (layer := layers.get(value)) is not None:
        return Reached(layer, (*nodes, *_own(layer)))
    cut = value.producer()
    if cut is None or cut.domain or cut.op_type not in ("Split", "Slice", "Gather") or cut.inputs[0] is None:
        return None
    source, more = through(cut.inputs[0])
    layer = layers.get(source)
    rows = _rows(cut, list(cut.outputs).index(value), layer.shape[0]) if layer is not None else None
    if layer is None or rows is None:
        return None
    return Reached(LinearRows(layer, rows), (*nodes, cut, *more, *_own(layer)))


def _own(layer: Linear) -> tuple[ir.Node, ...]:
    return tuple(n for n in (layer.node, layer.add) if n is not None)


def _rows(cut: ir.Node, which: int, count: int) -> np.ndarray | None:
    """Which of ``count`` channels on the last axis an output of Split, Slice or Gather holds."""
    rank, every = len(dims(cut.inputs[0]) or ()), np.arange(count)
    given = [edit.constant(v) for v in cut.inputs[1:]]
    if cut.op_type == "Slice":
        return _sliced(cut, given, rank, every)
    if edit.attribute(cut, "axis", 0) not in (-1, rank - 1) or rank == 0:
        return None
    if cut.op_type == "Gather":
        return every[given[0]] if given[0] is not None and given[0].ndim == 1 else None
    sizes = [size(o, -1) for o in cut.outputs]
    if None in sizes or sum(s or 0 for s in sizes) != count:
        return None
    start = sum(s or 0 for s in sizes[:which])
    return every[start : start + (sizes[which] or 0)]


def _sliced(cut: ir.Node, given: list[np.ndarray | None], rank: int, every: np.ndarray) -> np.ndarray | None:
    if len(given) < 3 or any(g is None or g.size != 1 for g in given):
        return None
    starts, ends, axes, *steps = (int(g.reshape(-1)[0]) for g in given if g is not None)
    return every[starts : ends : steps[0] if steps else 1] if axes in (-1, rank - 1) and rank else None
