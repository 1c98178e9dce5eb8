"""Drop requantizations along data movement: one grid from the producer to the consumer."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import edit
from graphpress.graph.grid import Grid, is_dequantize, is_quantize
from graphpress.passes.fold.conversions import integer_ops, wide_moves
from graphpress.passes.fold.grid_flow import GridFlow
from graphpress.types import Numerics, Stage


@dataclass(frozen=True)
class ShareScales(Pass):
    """Keep one of two grids where a value is quantized, at most moved or clipped, and quantized again.

    - ``x -> Q1 -> DQ1 -> moves -> Q2`` only: Q1 and DQ1 go, if the range of Q2 lies within that of Q1. The values are
      rounded once instead of twice: each differs by at most half a step of Q1 before Q2 rounds it.
    - ``DQ1 -> moves -> Q2 -> DQ2`` otherwise: Q2 and DQ2 go, if the range of Q1 lies within that of Q2 and the types
      are equal: each value differs by at most half a step of Q2, and stays what it was on the first grid.

    Ranges are compared up to half a step of the grid that goes, so no clipping is lost. Declared lossy, as roundings
    vanish, but always towards the float model.
    """

    name = "share-scales"
    numerics = Numerics.LOSSY
    needs = (Stage.QDQ,)

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        flow = GridFlow(model, integer_ops(ctx), wide=wide_moves(ctx))
        quantized = [(n, g) for n, g in flow.grids.items() if is_quantize(n) and g.movable]
        report.changed += sum(_drop_first(flow, n, g) for n, g in reversed(quantized))
        report.changed += sum(_drop_second(flow, n, g, report) for n, g in quantized if n.graph is not None)


def _drop_first(flow: GridFlow, quantize: ir.Node, grid: Grid) -> bool:
    """Remove a Q -> DQ all of whose values are quantized again on a grid within its range."""
    source, backs = quantize.inputs[0], _backs(quantize)
    if source is None or not backs or edit.is_constant(source):
        return False
    wanted = {flow.wanted(back) for back in backs}
    later = wanted.pop()
    if wanted or later is None or later == grid or not _covers(grid, later):
        return False
    return _bypass(flow, backs, source)


def _drop_second(flow: GridFlow, quantize: ir.Node, grid: Grid, report: PassReport) -> bool:
    """Remove a Q -> DQ whose values lie on another grid of the same type already."""
    source, backs = quantize.inputs[0], _backs(quantize)
    earlier = flow.on.get(source) if source is not None else None
    if source is None or earlier is None or earlier == grid or not backs:
        return False
    if earlier.dtype != grid.dtype or not _covers(grid, earlier):
        report.skip(quantize, f"requantizes from {earlier} to {grid}: the second clips or has another type")
        return False
    if any(_has_integer_bias(user) for back in backs for user, _ in back.uses()):
        report.skip(quantize, "the integer bias behind it was made for its scale")
        return False
    return _bypass(flow, backs, source)


def _backs(quantize: ir.Node) -> list[ir.Value]:
    """Outputs of the DQ nodes that read a Q; none if anything else does."""
    out = quantize.outputs[0]
    users = [user for user, _ in out.uses()]
    if out.is_graph_output() or not all(is_dequantize(u) and u.graph is quantize.graph for u in users):
        return []
    return [u.outputs[0] for u in users]


def _bypass(flow: GridFlow, backs: list[ir.Value], source: ir.Value) -> bool:
    for back in backs:
        edit.replace(back, source)
    edit.remove_unused(backs)
    flow.refresh(source)
    return True


def _covers(grid: Grid, other: Grid) -> bool:
    slack = float(grid.scale.item()) / 2
    return grid.span[0] - slack <= other.span[0] and other.span[1] <= grid.span[1] + slack


def _has_integer_bias(node: ir.Node) -> bool:
    bias = node.inputs[2].producer() if len(node.inputs) > 2 and node.inputs[2] is not None else None
    codes = bias.inputs[0] if is_dequantize(bias) else None
    return codes is not None and codes.dtype == ir.DataType.INT32
