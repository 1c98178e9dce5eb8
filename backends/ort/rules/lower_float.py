"""Layers that were left in float between quantized neighbours stay in float.

ONNX Runtime rounds the float weight of a Conv or Gemm between DequantizeLinear and QuantizeLinear to int8 by itself,
one scale for all channels, and runs the integer kernel: a layer that was taken back to float to hold an accuracy budget
would lose more than before. Under the names FusedConv and FusedGemm, the same float kernels, it lets them be.
"""

from __future__ import annotations

import onnx_ir as ir

from graphpress.backends import canonical
from graphpress.backends.ort import emit
from graphpress.backends.ort.groups import quantizers
from graphpress.backends.ort.lowering import LoweringRule
from graphpress.graph import edit
from graphpress.target import Fact, Target

# FusedGemm insists on an activation: this one is the identity.
_FUSED = {"Conv": ("FusedConv", {}), "Gemm": ("FusedGemm", {"activation": "LeakyRelu", "activation_alpha": 1.0})}
LEFT = frozenset(kernel for kernel, _ in _FUSED.values())


def _apply(node: ir.Node, target: Target, shared: emit.Shared) -> bool:
    """Lower ``node`` if ONNX Runtime would quantize its float weight; whether it was."""
    if len(node.inputs) < 2 or not edit.is_constant(node.inputs[1]):
        return False
    x = canonical.activation(node.inputs[0])
    if x is None or x.kind != "static" or not any(_reaches_quantizer(v) for v in node.outputs):
        return False
    if node.outputs[0].dtype not in (None, ir.DataType.FLOAT):
        return False
    kernel, more = _FUSED[node.op_type]
    emit.substitute(node, kernel, list(node.inputs), {k: a.value for k, a in node.attributes.items()} | more)
    return True


def _reaches_quantizer(value: ir.Value) -> bool:
    """Whether a QuantizeLinear reads the value, directly or behind a Relu or Clip."""
    if quantizers(value):
        return True
    return any(u.node.op_type in ("Relu", "Clip") and quantizers(u.node.outputs[0]) for u in value.uses())


RULE = LoweringRule(
    "float-islands", 70, _apply, ops=tuple(_FUSED), kernels=tuple(sorted(LEFT)), fact=Fact.ROUNDS_FLOAT_WEIGHTS
)
