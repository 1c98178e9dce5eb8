"""Let data movement, pooling and clipping run on the stored integers, with the fewest conversions around them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import edit
from graphpress.graph.grid import Grid, is_dequantize, is_quantize
from graphpress.keys import SCOPE
from graphpress.passes.fold.conversions import conversions, integer_ops, wide_moves
from graphpress.passes.fold.grid_flow import GridFlow
from graphpress.passes.fold.min_cut import FOREVER, Network
from graphpress.passes.fold.written import new_dequantize, new_quantize
from graphpress.types import Numerics, Stage

INTEGERS, FLOATS = "integers", "floats"  # the two terminals of the cut


@dataclass(frozen=True)
class MoveQdq(Pass):
    """Move Q up and DQ down past operators that commute with them, to where conversions are fewest.

    Each movement operator whose inputs lie on one grid, or whose outputs are all quantized on one grid, may run on
    floats or on integers. A value that one side makes and the other reads costs one conversion. The choice with the
    fewest is a minimum cut; of several the one with most operators on integers is taken. No integer kernel is given up
    for it.

    Exact: Q and DQ are monotone and act on each element alone, so they commute with moving and with choosing by order;
    bounds and fill values are quantized themselves.
    """

    name = "move-qdq"
    numerics = Numerics.EXACT
    needs = (Stage.QDQ,)

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        integer = integer_ops(ctx)
        flow = GridFlow(model, integer, wide=wide_moves(ctx))
        report.metrics["conversions before"] = len(conversions(model, integer))
        domains = _Domains(flow, model)
        integers = domains.integers()
        mover = _Mover(flow)
        for node, grid in domains.free.items():
            if node in integers:
                mover.move(node, grid)
                report.changed += 1
        edit.remove_unused(mover.stale)
        report.metrics["conversions after"] = len(conversions(model, integer))


class _Domains:
    """Which of the operators that may run on integers should, given the fixed sides of everything around them."""

    def __init__(self, flow: GridFlow, model: ir.Model) -> None:
        self.flow = flow
        # A function has no initializers: its scales are nodes, which a Q that goes up would leave behind.
        functions = {node for function in model.functions.values() for node in function.all_nodes()}
        moves = [node for node in flow.moves if node not in flow.fused and node not in functions]
        grids = {node: flow.through.get(node) or flow.on.get(node.outputs[0]) for node in moves}
        self.free: dict[ir.Node, Grid] = {node: grid for node, grid in grids.items() if grid is not None}

    def integers(self) -> set[ir.Node]:
        self.network = Network(INTEGERS, FLOATS)
        for value, grid in self._places():
            self._terms(value, grid)
        return set(self.free) - self.network.sink_side()

    def _places(self) -> set[tuple[ir.Value, Grid]]:
        places = set()
        for node, grid in self.free.items():
            inputs = [node.inputs[slot] for slot in self.flow.moves[node].data]
            for value in (*inputs, *node.outputs):
                if value is not None:
                    places.add((value, grid))
                    places.add((value, self.flow.on.get(value, grid)))
        return places

    def _terms(self, value: ir.Value, grid: Grid) -> None:
        """One conversion if the value is made as floats and some reader wants it as integers of this grid.

        And one if it is made as integers and some reader wants floats; not allowed off the grid.
        """
        maker, quantized, plain = self._maker(value, grid), ("Q", value, grid), ("DQ", value, grid)
        self.network.arc(quantized, maker, 1)
        self.network.arc(maker, plain, 1 if self.flow.on.get(value) == grid else FOREVER)
        for reader in self._readers(value, grid):
            self.network.arc(reader, quantized)
            self.network.arc(plain, reader)

    def _maker(self, value: ir.Value, grid: Grid) -> ir.Node | str:
        node = value.producer()
        if node is None:
            return FLOATS
        if node in self.free:
            return node if self.free[node] == grid else FLOATS
        if is_dequantize(node):
            return INTEGERS if self.flow.on.get(value) == grid else FLOATS
        return INTEGERS if self._computes(node) and self.flow.wanted(value) == grid else FLOATS

    def _readers(self, value: ir.Value, grid: Grid) -> Iterator[ir.Node | str]:
        if value.is_graph_output():
            yield FLOATS
        for user, slot in value.uses():
            if self.free.get(user) == grid and slot in self.flow.moves[user].data:
                yield user
            elif slot == 0 and is_quantize(user):
                yield INTEGERS if self.flow.grids.get(user) == grid else FLOATS
            else:
                yield INTEGERS if self.flow.on.get(value) == grid and self._computes(user) else FLOATS

    def _computes(self, node: ir.Node) -> bool:
        """Whether an integer kernel can take this node, wherever its Q and DQ end up."""
        if node in self.free or node.op_type not in self.flow.integer or node.domain != "":
            return False
        computed = [v for v in node.inputs if v is not None and not edit.is_constant(v)]
        if not computed or not all(v in self.flow.on or is_dequantize(v.producer()) for v in computed):
            return False
        return self.flow.integer[node.op_type] == "optional" or all(self.flow.wanted(out) for out in node.outputs)


class _Mover:
    """Rewrites one node after the other, in order, leaving a DQ behind each for whoever still reads floats."""

    def __init__(self, flow: GridFlow) -> None:
        self.flow = flow
        self.stale: list[ir.Value | None] = []
        self._made: dict[tuple[object, ...], ir.Value] = {}

    def move(self, node: ir.Node, grid: Grid) -> None:
        self.stale.extend(node.inputs)
        move = self.flow.moves[node]
        for slot in move.data:
            value = node.inputs[slot]
            assert value is not None
            edit.set_input(node, slot, self._as_integers(value, grid, node))
        if move.literals:
            node = self._with_literals(node, grid)
        for out in node.outputs:
            self._dequantize(out, grid, node)

    def _as_integers(self, value: ir.Value, grid: Grid, node: ir.Node) -> ir.Value:
        producer = value.producer()
        if producer is not None and is_dequantize(producer) and self.flow.grids.get(producer) == grid:
            assert producer.inputs[0] is not None
            return producer.inputs[0]
        key = (value, grid, node.graph)
        if key not in self._made:
            self._made[key] = new_quantize(value, grid, node)
        return self._made[key]

    def _with_literals(self, node: ir.Node, grid: Grid) -> ir.Node:
        """The same node with integer bounds; a Relu becomes a Clip."""
        assert isinstance(node.graph, ir.Graph)
        literals = self.flow.moves[node].literals
        inputs = [*node.inputs, *[None] * (1 + max(literals) - len(node.inputs))]
        for slot, x in literals.items():
            inputs[slot] = edit.add_const(node.graph, grid.quantize(x), f"{node.name}_{slot}")
        op_type = "Clip" if node.op_type == "Relu" else node.op_type
        made = edit.new_node(op_type, inputs, dict(node.attributes), after=node, origin=node)
        if SCOPE in node.metadata_props:
            made.metadata_props[SCOPE] = node.metadata_props[SCOPE]
        edit.supersede(node, made.outputs, metadata=False)
        return made

    def _dequantize(self, out: ir.Value, grid: Grid, node: ir.Node) -> None:
        """Give the readers of floats a DQ of the integers that ``out`` now is, and the readers of Q the integers."""
        back = new_dequantize(out, grid, node)
        edit.replace(out, back)
        out.type = ir.TensorType(grid.dtype)
        producer = back.producer()
        assert producer is not None
        self.flow.grids[producer] = grid
        for user, slot in list(back.uses()):
            if slot == 0 and is_quantize(user) and self.flow.grids.get(user) == grid:
                edit.replace(user.outputs[0], out)
                edit.remove_unused(user.outputs)
        self.stale.append(back)
