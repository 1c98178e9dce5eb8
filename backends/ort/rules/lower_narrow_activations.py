"""Activations in static codes of 4 or 2 bits: the same codes, held in 8 bits, which kernels multiply.

ONNX Runtime 1.32 makes a QLinearConv or QLinearMatMul of Q/DQ of 4 bits too, and then refuses the model, having none.
The QuantizeLinear gets the 8-bit type of the same sign and the same scale and zero point, and a Clip behind it to the
ends of its codes, so that the codes are the same to the bit, and integer kernels take them. In front of it, a Clip of
floats would stand between a layer and what quantizes its output, and the layer would run in float.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphpress.backends.ort import emit
from graphpress.backends.ort.lowering import LoweringRule
from graphpress.graph import edit
from graphpress.graph.grid import grid_of, is_dequantize
from graphpress.keys import BY
from graphpress.target import Target


def _apply(node: ir.Node, target: Target, shared: emit.Shared) -> bool:
    """Widen what ``node`` makes, if it makes narrow codes of computed numbers and all its readers decode them."""
    grid, value, graph = grid_of(node), node.inputs[0], node.graph
    if grid is None or grid.floating or grid.dtype.bitwidth >= 8 or grid.axis is not None:
        return False
    if value is None or edit.is_constant(value) or node.outputs[0].is_graph_output() or not isinstance(graph, ir.Graph):
        return False
    readers = [u.node for u in node.outputs[0].uses()]
    if not readers or not all(map(is_dequantize, readers)):
        return False
    wide = ir.DataType.INT8 if grid.limits[0] < 0 else ir.DataType.UINT8
    ends = [edit.add_const(graph, np.asarray(end, wide.numpy()), f"{node.name}_end") for end in grid.limits]
    zero = edit.add_const(graph, np.asarray(int(grid.zero.item()), wide.numpy()), f"{node.name}_zero_point")
    node.attributes.pop("output_dtype", None)
    node.outputs[0].type = ir.TensorType(wide)
    for user in (node, *readers):
        if len(user.inputs) < 3:
            user.resize_inputs(3)
        edit.set_input(user, 2, zero)
    held = edit.new_node("Clip", [node.outputs[0], *ends], after=node, origin=node)
    held.metadata_props[BY] = "lower"
    for user in readers:
        edit.set_input(user, 0, edit.like(held.outputs[0], node.outputs[0]))
    return True


RULE = LoweringRule("narrow-activations", 3, _apply, ops=("QuantizeLinear",))
