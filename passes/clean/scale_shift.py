"""Fold a channel-wise ``y = scale * x + shift`` into the linear operator that makes ``x``.

Conv, ConvTranspose, Gemm and MatMul keep their node and name; a weight that nobody else reads keeps its name too and
changes its value, a shared one is copied. Arithmetic is float64, the result is rounded once to the weight's type.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.graph.statistics import read_statistics, write_statistics
from graphpress.passes.clean.constants import absent, static


@dataclass(frozen=True)
class AffineLayer:
    """A linear node with a constant weight.

    Attributes:
        node: The operator.
        channels: Number of output channels.
        channel_axis: Axis of the output that holds them, from the front (Conv) or -1 (MatMul, Gemm).
    """

    node: ir.Node
    channels: int
    channel_axis: int


def linear(value: ir.Value | None) -> AffineLayer | str:
    """The linear operator that makes ``value``, or why nothing can be folded into it."""
    node = value.producer() if value is not None else None
    if value is None or node is None or node.domain != "" or node.op_type not in _SCALE:
        return "its input comes from no Conv, ConvTranspose, Gemm or MatMul"
    if value.is_graph_output() or len(value.uses()) > 1:
        return f"others read the output of {node.name!r} as well"
    weight = edit.constant_tensor(node.inputs[1])
    if weight is None or not (absent(node, 2) or edit.is_constant(node.inputs[2])):
        return f"weight or bias of {node.name!r} is not constant"
    if weight.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        return f"the weight of {node.name!r} is {weight.dtype}"
    shape = static(weight.shape)
    if node.op_type == "MatMul" and len(shape) != 2:
        return f"the weight of {node.name!r} is no matrix"
    return AffineLayer(node, _channels(node, shape), -1 if node.op_type in ("Gemm", "MatMul") else 1)


def _channels(node: ir.Node, shape: tuple[int, ...]) -> int:
    if node.op_type == "ConvTranspose":
        return shape[1] * node.attributes.get_int("group", 1)
    if (node.op_type == "Gemm" and not node.attributes.get_int("transB", 0)) or node.op_type == "MatMul":
        return shape[1]
    return shape[0]


def fold(target: AffineLayer, scale: np.ndarray, shift: np.ndarray) -> str | None:
    """Let the node give ``scale * y + shift`` (float64 vectors, one element a channel); or say why it cannot.

    A MatMul takes no shift: it must be zero.
    """
    node = target.node
    weight = edit.constant(node.inputs[1])
    assert weight is not None
    wide = weight.astype(np.float64)
    with np.errstate(all="ignore"):
        scaled = _SCALE[node.op_type](node, wide, scale).astype(weight.dtype)
        bias = (_bias(node, target) * scale + shift / _beta(node)).astype(weight.dtype)
    if not (np.isfinite(scaled).all() and np.isfinite(bias).all()):
        return "the folded weights would not be finite"
    edit.set_constant(node, 1, scaled, "weight")
    if bias.any() or not absent(node, 2):
        assert node.op_type != "MatMul", "a MatMul has no bias"
        edit.set_constant(node, 2, bias, "bias")
    _note_statistics(node, scale, shift)
    return None


def _beta(node: ir.Node) -> float:
    return node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" else 1.0


def _bias(node: ir.Node, target: AffineLayer) -> np.ndarray:
    bias = None if absent(node, 2) else edit.constant(node.inputs[2])
    if bias is None:
        return np.zeros(target.channels)
    # A Gemm's C may be a scalar, a row, a column or a matrix; only a column and a matrix keep their two axes.
    wide = bias.astype(np.float64)
    return wide if wide.ndim == 2 and wide.shape[0] > 1 else np.broadcast_to(wide.reshape(-1), target.channels)


def _scale_conv(node: ir.Node, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))


def _scale_conv_transpose(node: ir.Node, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The weight is [inputs, outputs / groups, ...]: each group of inputs has its own outputs."""
    groups = node.attributes.get_int("group", 1)
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    return (grouped * scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)


def _scale_gemm(node: ir.Node, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return weight * (scale[:, None] if node.attributes.get_int("transB", 0) else scale)


def _scale_matmul(node: ir.Node, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return weight * scale


_SCALE: dict[str, Callable[[ir.Node, np.ndarray, np.ndarray], np.ndarray]] = {
    "Conv": _scale_conv,
    "ConvTranspose": _scale_conv_transpose,
    "Gemm": _scale_gemm,
    "MatMul": _scale_matmul,
}


def _note_statistics(node: ir.Node, scale: np.ndarray, shift: np.ndarray) -> None:
    """Statistics of an earlier BatchNormalization follow what is folded after it."""
    known = read_statistics(node)
    if known is not None:
        mean, std = known
        write_statistics(node, scale * mean + shift, abs(scale) * std)
