"""Where quantized values flow: which values lie on a grid, which are read through one grid only."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import TypeVar

import onnx_ir as ir

from graphpress.graph import edit
from graphpress.graph.grid import Grid, grid_of, is_dequantize, is_quantize
from graphpress.graph.movement import OPSET, Movement, movement

_NARROW = 8  # bits of integers that all data movement runs on


class GridFlow:
    """One linear walk forwards and one backwards over all graphs of a model.

    Attributes:
        nodes: All nodes, outer graphs first, each graph in order.
        moves: The data movement among them.
        grids: The constant grid of each Q and DQ.
        on: Float values all of whose elements lie on a movable grid, with that grid.
        through: Movement all of whose outputs are read through one grid, with that grid.
        fused: Movement that has an integer kernel of its own from the grids of its inputs to another (Concat).

    Args:
        model: The model; where it changes afterwards, ``refresh`` is to be called.
        integer: Operators with an integer kernel, and whether that requires a Q behind it.
        wide: Data movement that runs on integers of more than 8 bits.
    """

    def __init__(
        self, model: ir.Model, integer: Mapping[str, str] = MappingProxyType({}), *, wide: Collection[str] = ()
    ) -> None:
        self.integer, self.wide = integer, wide
        self.nodes = list(edit.nodes(model))
        self.moves: dict[ir.Node, Movement] = {}
        self.grids: dict[ir.Node, Grid] = {}
        self.on: dict[ir.Value, Grid] = {}
        self.through: dict[ir.Node, Grid] = {}
        self.fused: set[ir.Node] = set()
        movable = edit.opset(model) >= OPSET
        for node in self.nodes:
            self._forward(node, movable)
        for node in reversed(self.nodes):
            if node in self.moves and (grid := self._wanted_behind(node)) is not None:
                self.through[node] = grid

    def _forward(self, node: ir.Node, movable: bool) -> None:
        if is_quantize(node) or is_dequantize(node):
            if (grid := grid_of(node)) is not None:
                self.grids[node] = grid
                if is_dequantize(node) and grid.movable:
                    self.on[node.outputs[0]] = grid
        elif movable and (move := movement(node)) is not None:
            self.moves[node] = move
            if (grid := self._carried(node, move)) is not None:
                self.on.update(dict.fromkeys(node.outputs, grid))

    def _carried(self, node: ir.Node, move: Movement) -> Grid | None:
        grids = {self.on.get(node.inputs[slot]) for slot in move.data}  # type: ignore[arg-type]
        grid = grids.pop()
        if grid is None or grids or not self.fits(grid, node):
            return None
        return grid if all(grid.holds(x) for x in move.literals.values()) else None

    def _wanted_behind(self, node: ir.Node) -> Grid | None:
        grids = {self.wanted(out) for out in node.outputs if out.uses() or out.is_graph_output()}
        grid = grids.pop() if len(grids) == 1 else None
        if grid is None or not self.fits(grid, node):
            return None
        if node.op_type in self.integer and _requantizes({self.on.get(v) for v in node.inputs if v is not None}, grid):
            self.fused.add(node)
            return None
        return grid

    def fits(self, grid: Grid, node: ir.Node) -> bool:
        """Whether data movement runs on the integers of ``grid``."""
        return grid.dtype.bitwidth <= _NARROW or node.op_type in self.wide

    def refresh(self, value: ir.Value) -> None:
        """Bring ``on`` and ``through`` up to date around a value whose readers changed."""
        pending: list[ir.Value | None] = [value]
        while pending:
            last = pending.pop()
            node = last.producer() if last is not None else None
            if node in self.moves and (grid := self._wanted_behind(node)) != self.through.get(node):
                _put(self.through, node, grid)
                pending.extend(node.inputs[slot] for slot in self.moves[node].data)
        readers = [user for user, _ in value.uses()]
        while readers:
            node = readers.pop()
            if node in self.moves and (grid := self._carried(node, self.moves[node])) != self.on.get(node.outputs[0]):
                for out in node.outputs:
                    _put(self.on, out, grid)
                    readers.extend(user for user, _ in out.uses())

    def wanted(self, value: ir.Value) -> Grid | None:
        """The one movable grid on which every use reads ``value``, at once or behind movement, in its own graph."""
        if value.is_graph_output():
            return None
        found: Grid | None = None
        for user, slot in value.uses():
            grid = self._use(value, user, slot)
            if grid is None or found not in (None, grid):
                return None
            found = grid
        return found

    def _use(self, value: ir.Value, user: ir.Node, slot: int) -> Grid | None:
        if user.graph is not value.graph and value.graph is not None:
            return None
        if user in self.moves:
            return self.through.get(user) if slot in self.moves[user].data else None
        grid = self.grids.get(user)
        return grid if grid is not None and is_quantize(user) and slot == 0 and grid.movable else None


_Key = TypeVar("_Key")


def _put(known: dict[_Key, Grid], key: _Key, grid: Grid | None) -> None:
    if grid is None:
        known.pop(key, None)
    else:
        known[key] = grid


def _requantizes(inputs: set[Grid | None], output: Grid) -> bool:
    return None not in inputs and inputs != {output}
