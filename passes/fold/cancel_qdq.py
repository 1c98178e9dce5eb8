"""Drop Q and DQ nodes that change nothing: duplicates, and a Q that undoes the DQ in front of it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import edit
from graphpress.graph.grid import Grid, grid_of, is_dequantize, is_quantize
from graphpress.types import Numerics, Stage


@dataclass(frozen=True)
class CancelQdq(Pass):
    """Merge equal Q (or DQ) nodes on one value, and replace Q(DQ(q)) on one grid by q.

    Exact: on one float32 grid of at most 16 bits Q undoes DQ for every stored integer (see ``Grid.exact``). So
    DQ -> Q -> DQ becomes one DQ. A Q on another grid than the DQ before it stays: that is a requantization.
    """

    name = "cancel-qdq"
    numerics = Numerics.EXACT
    needs = (Stage.QDQ,)

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        seen: dict[tuple[object, ...], ir.Value] = {}
        for node in edit.nodes(model):
            if node.graph is None or not (is_quantize(node) or is_dequantize(node)) or (grid := grid_of(node)) is None:
                continue
            by = _undone(node, grid, report) or _first(seen, node, grid)
            if by is not node.outputs[0] and not (by.is_graph_output() and node.outputs[0].is_graph_output()):
                edit.replace(node.outputs[0], by)
                edit.remove_unused(node.outputs)
                report.changed += 1


def _first(seen: dict[tuple[object, ...], ir.Value], node: ir.Node, grid: Grid) -> ir.Value:
    """The output of the first such node of its graph that is still there."""
    key = (node.op_type, node.inputs[0], grid, node.graph)
    producer = seen[key].producer() if key in seen else None
    if producer is None or producer.graph is None:
        seen[key] = node.outputs[0]
    return seen[key]


def _undone(node: ir.Node, grid: Grid, report: PassReport) -> ir.Value | None:
    """The integers that a Q gives back, if it stands behind a DQ of the same grid."""
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    if not is_quantize(node) or source is None or not is_dequantize(source):
        return None
    before = grid_of(source)
    if before != grid or not grid.exact:
        report.skip(node, f"requantizes: {_differ(before, grid)}")
        return None
    return source.inputs[0]


def _differ(before: Grid | None, after: Grid) -> str:
    if before is None:
        return "the scale before it is computed at run time"
    if before == after:
        return f"scales {after.scale.ravel()[:3]} are not normal float32 numbers"
    if before.dtype != after.dtype:
        return f"{before.dtype.name} before it, {after.dtype.name} behind"
    return "different scale, zero point, axis or block size"
