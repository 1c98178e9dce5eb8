"""Q and DQ nodes on a grid, put where the graph can read them."""

from __future__ import annotations

import onnx_ir as ir

from graphpress.graph import edit
from graphpress.graph.grid import DEQUANTIZE, QUANTIZE, Grid


def new_quantize(x: ir.Value, grid: Grid, origin: ir.Node) -> ir.Value:
    """Q(x) on a movable grid, placed where every use of ``x`` in the origin's graph can read it."""
    scope, producer = origin.graph, x.producer()
    assert scope is not None
    inputs = [x, *grid.values]
    if producer is not None and producer.graph is scope:
        node = edit.new_node(QUANTIZE, inputs, after=producer, origin=origin)
    else:
        node = edit.new_node(QUANTIZE, inputs, before=scope[0], origin=origin)
    return edit.like(node.outputs[0], x, grid.dtype)


def new_dequantize(q: ir.Value, grid: Grid, origin: ir.Node) -> ir.Value:
    """DQ(q) on a movable grid, placed right after ``origin``; its type is float32."""
    node = edit.new_node(DEQUANTIZE, [q, *grid.values], after=origin, origin=origin)
    return edit.like(node.outputs[0], q, ir.DataType.FLOAT)
