"""Activations in floats of 8 bits, which ONNX Runtime's CPU provider does not multiply: rounded, computed in float.

Q and DQ become Div, Cast, Cast, Mul: the same numbers. Left as they are, ONNX Runtime 1.32 takes the zero point of a
QuantizeLinear to such floats for that of uint8, and drops the Relu before it.
"""

from __future__ import annotations

import onnx_ir as ir

from graphpress.backends.ort import emit
from graphpress.backends.ort.lowering import LoweringRule
from graphpress.graph import edit
from graphpress.graph.grid import grid_of, is_quantize
from graphpress.target import Target


def _apply(node: ir.Node, target: Target, shared: emit.Shared) -> bool:
    """Lower ``node`` if it converts computed numbers by one scale; whether it was."""
    grid, value = grid_of(node), node.inputs[0]
    if grid is None or not grid.floating or grid.axis is not None or value is None or edit.is_constant(value):
        return False
    scale = node.inputs[1]
    if is_quantize(node):
        steps = edit.like(emit.helper_node("Div", [value, scale], node), value)
        emit.substitute(node, "Cast", [steps], {"to": grid.dtype}, domain="")
    else:
        assert scale is not None and scale.dtype is not None
        numbers = edit.like(emit.helper_node("Cast", [value], node, {"to": scale.dtype}), node.outputs[0])
        emit.substitute(node, "Mul", [numbers, scale], domain="")
    return True


RULE = LoweringRule("small-floats", 4, _apply, ops=("QuantizeLinear", "DequantizeLinear"))
