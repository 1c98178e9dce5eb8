"""Signed codes that data movement reads as floats.

From opset 21 on ONNX Runtime 1.32 moves a DequantizeLinear behind the MaxPool, Transpose, Reshape, Slice, Squeeze or
Unsqueeze that reads it. The QuantizeLinear that it writes for that has no type for a zero point of int8, and the model
is refused. A zero point of 0 is left out, which it takes; another one is subtracted in floats, which give the same
numbers: codes and zero points of 8 bits are exact in them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphpress.backends.ort import emit
from graphpress.backends.ort.lowering import LoweringRule
from graphpress.graph import edit
from graphpress.graph.grid import is_quantize
from graphpress.target import Target

MOVED = ("MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
_SINCE = 21


def _apply(node: ir.Node, target: Target, shared: emit.Shared) -> bool:
    """Lower what of ``node``'s readers moves its floats; whether there was any."""
    scale, zero = edit.constant(node.inputs[1]), edit.constant(node.inputs[2] if len(node.inputs) > 2 else None)
    codes, graph = node.inputs[0], node.graph
    if scale is None or zero is None or zero.dtype != np.int8 or scale.size != 1 or scale.dtype != np.float32:
        return False
    moves = [(u.node, u.idx) for u in node.outputs[0].uses() if u.idx == 0 and _moves_floats(u.node)]
    if not moves or codes is None or not isinstance(graph, ir.Graph) or graph.opset_imports.get("", _SINCE) < _SINCE:
        return False
    if not zero.any():
        node.resize_inputs(2)
        return True
    floats = edit.new_node("Cast", [codes], {"to": ir.DataType.FLOAT}, before=node, origin=node)
    for op_type, array in (("Sub", zero.astype(np.float32)), ("Mul", scale)):
        operand = edit.add_const(graph, array.reshape(()), f"{node.name}_{op_type}")
        floats = edit.new_node(op_type, [floats.outputs[0], operand], before=node, origin=node)
    edit.like(floats.outputs[0], node.outputs[0])
    for reader, slot in moves:
        edit.set_input(reader, slot, floats.outputs[0])
    if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
        edit.remove_unused([node.outputs[0]])
    return True


def _moves_floats(node: ir.Node) -> bool:
    """Whether a node moves data that no quantizer takes up right behind it."""
    uses = [u for v in node.outputs for u in v.uses()]
    public = any(v.is_graph_output() for v in node.outputs)
    return not node.domain and node.op_type in MOVED and (public or not all(is_quantize(u.node) for u in uses))


RULE = LoweringRule("signed-moves", 5, _apply, ops=("DequantizeLinear",))
