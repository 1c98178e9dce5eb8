"""The smallest models: none, and one of each common operator, in float and behind Q/DQ."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.keys import STAGE
from graphpress.types import Stage
from tests import kit
from tests.passes import quantizing

_WEIGHTS: Mapping[str, tuple[int, ...]] = {
    "w": (8, 8), "b": (8,), "k": (8, 8, 3, 3), "d": (8, 1, 3, 3), "g": (8,), "m": (8,), "v": (8,),
}  # fmt: skip
_FLAT = {
    "MatMul": "MatMul(x, w)", "Gemm": "Gemm<transB = 1>(x, w, b)", "Add": "Add(x, b)", "Mul": "Mul(x, b)",
    "Sub": "Sub(x, b)", "Relu": "Relu(x)", "Sigmoid": "Sigmoid(x)", "Gelu": "Gelu(x)", "Softmax": "Softmax(x)",
    "Identity": "Identity(x)", "LayerNormalization": "LayerNormalization(x, g, b)", "Neg": "Neg(x)",
    "Dropout": "Dropout(x)", "Einsum": 'Einsum<equation = "ij,jk->ik">(x, w)', "Exp": "Exp(x)", "Self": "Add(x, x)",
}  # fmt: skip
_IMAGE = {
    "Conv": "Conv<pads = [1, 1, 1, 1]>(x, k, b)", "DepthwiseConv": "Conv<group = 8, pads = [1, 1, 1, 1]>(x, d)",
    "ConvTranspose": "ConvTranspose<pads = [1, 1, 1, 1]>(x, k)", "MaxPool": "MaxPool<kernel_shape = [1, 1]>(x)",
    "BatchNormalization": "BatchNormalization(x, g, b, m, v)", "Clip": "Clip(x)",
}  # fmt: skip
NAMES = ("empty", "constant", *_FLAT, *_IMAGE, "Reshape", "Transpose", "Concat", "Gather", "If")


def build(name: str, stage: Stage = Stage.FLOAT) -> ir.Model:
    """The model of one node; behind ``Stage.QDQ`` its input, its weights and its output go through 8 bits.

    Args:
        name: One of ``NAMES``.
        stage: What the model says of itself.
    """
    made = _quantized(_float(name)) if stage is Stage.QDQ and name in _FLAT | _IMAGE else _float(name)
    made.metadata_props[STAGE] = stage.value
    return made


def _float(name: str) -> ir.Model:
    dims = "2, 8, 4, 4" if name in _IMAGE else "2, 8"
    bodies = _FLAT | _IMAGE
    if name in bodies:
        body = bodies[name]
        used = [w for w in _WEIGHTS if any(f"{before}{w}{after}" in body for before in " (" for after in ",)")]
        declared = "".join(f", float[{', '.join(map(str, _WEIGHTS[w]))}] {w}" for w in used)
        text = f"g (float[{dims}] x{declared}) => (float[{dims}] y) {{ [node] y = {body} }}"
        arrays = {w: quantizing.normal(*_WEIGHTS[w], seed=i) for i, w in enumerate(used)}
        if "v" in arrays:
            arrays["v"] = np.abs(arrays["v"]) + np.float32(0.5)
        return quantizing.model(text, arrays)
    return kit.parse(_OTHERS[name])


_OTHERS = {
    "empty": "g (float[2, 8] x) => (float[2, 8] x) { }",
    "constant": "g (float[2, 8] x) => (float[2] y) <float[2] y = {1.0, 2.0}> { }",
    "Reshape": "g (float[2, 8] x) => (float[4, 4] y) <int64[2] s = {4, 4}> { [node] y = Reshape(x, s) }",
    "Transpose": "g (float[2, 8] x) => (float[8, 2] y) { [node] y = Transpose<perm = [1, 0]>(x) }",
    "Concat": "g (float[2, 8] x) => (float[2, 16] y) { [node] y = Concat<axis = 1>(x, x) }",
    "Gather": "g (float[2, 8] x) => (float[2, 2] y) <int64[2] i = {5, 0}> { [node] y = Gather<axis = 1>(x, i) }",
    "If": """g (float[2, 8] x, bool c) => (float[2, 8] y) {
        [node] y = If (c) <then_branch = t () => (float[2, 8] a) { [one] a = Neg(x) },
                           else_branch = e () => (float[2, 8] b) { [two] b = Exp(x) }>
    }""",
}


def _quantized(model: ir.Model) -> ir.Model:
    """Static 8 bits by hand: per-tensor scales that are powers of two."""
    (node,) = list(model.graph)
    scale = edit.add_const(model.graph, np.float32(2**-4), "scale")
    zero = edit.add_const(model.graph, np.int8(0), "zero")

    def behind(value: ir.Value, place: dict[str, ir.Node]) -> ir.Value:
        q = edit.new_node("QuantizeLinear", [value, scale, zero], **place)
        dq = edit.new_node("DequantizeLinear", [q.outputs[0], scale, zero], after=q)
        for made in (q.outputs[0], dq.outputs[0]):
            edit.like(made, value)
        q.outputs[0].type = ir.TensorType(ir.DataType.INT8)
        return dq.outputs[0]

    for slot, value in enumerate(list(node.inputs)):
        if value is not None and slot < 2:
            edit.set_input(node, slot, behind(value, {"before": node}))
    output = model.graph.outputs[0]
    output.name = "inner"
    back = behind(output, {"after": node})
    back.name = "y"
    model.graph.outputs[0] = back
    return model
