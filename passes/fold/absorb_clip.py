"""Remove the Relu and Clip nodes that the range of a quantizer makes redundant."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import edit
from graphpress.graph.grid import Grid
from graphpress.graph.movement import interval
from graphpress.passes.fold.conversions import wide_moves
from graphpress.passes.fold.grid_flow import GridFlow
from graphpress.types import Numerics, Stage


@dataclass(frozen=True)
class AbsorbClip(Pass):
    """Let saturation do the clipping, so that the producer's integer kernel writes the clipped range itself.

    Exact, in two cases. Behind: every use quantizes on one grid where the bounds fall on the limits of the type; as Q
    is monotone, Q(clip(x)) = clip(Q(x), Q(lo), Q(hi)) = Q(x). Data movement between the two changes nothing in that.
    Before: the input comes from a DQ whose smallest and largest numbers lie within the bounds.
    """

    name = "absorb-clip"
    numerics = Numerics.EXACT
    needs = (Stage.QDQ,)

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        flow = GridFlow(model, wide=wide_moves(ctx))
        for node in flow.moves:
            limits = interval(node)
            if limits is None or node.inputs[0] is None:
                continue
            out, source = node.outputs[0], node.inputs[0]
            wanted, before = flow.wanted(out), flow.on.get(source)
            if (wanted and _saturates(wanted, limits)) or (before and _within(before, limits)):
                edit.replace(out, source)
                bounds = node.inputs[1:]
                edit.remove([node])
                edit.remove_unused(bounds)
                report.changed += 1
            elif wanted:
                report.skip(node, f"the quantizer behind it ({wanted}) reaches beyond [{limits[0]:g}, {limits[1]:g}]")


def _saturates(grid: Grid, limits: tuple[float, float]) -> bool:
    return tuple(int(grid.quantize(x)) for x in limits) == grid.limits


def _within(grid: Grid, limits: tuple[float, float]) -> bool:
    return limits[0] <= grid.span[0] and grid.span[1] <= limits[1]
