"""Two thin products beside a layer, whose sum with it others read: what branches of low rank are written as."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphpress.passes.recover.adapters.base import Scribe, dtype

DOWN, GAMMA, UP = "down", "gamma", "up"  # R, a factor of each of its rows, L


def write(
    scribe: Scribe, left: np.ndarray, right: np.ndarray, gamma: np.ndarray | None = None
) -> tuple[ir.Value, ir.Value]:
    """y + L diag(gamma) R x beside a matrix product or a convolution, where x is what it reads.

    Args:
        scribe: Of the layer.
        left: L [out, rank].
        right: R [rank, in times the kernel].
        gamma: [rank], a constant that is not trained; None: there is none.

    Returns: The constants that hold R and L.
    """
    return (_convolve if scribe.layer.node.op_type == "Conv" else _multiply)(scribe, left, right, gamma)


def _multiply(
    scribe: Scribe, left: np.ndarray, right: np.ndarray, gamma: np.ndarray | None
) -> tuple[ir.Value, ir.Value]:
    layer, wanted = scribe.layer, dtype(scribe.layer).numpy()
    leading = None if layer.input.shape is None else list(layer.input.shape)[:-1]
    inner = None if leading is None else [*leading, len(right)]
    down = scribe.constant(DOWN, right.T.astype(wanted), trained=True)
    up = scribe.constant(UP, left.T.astype(wanted), trained=True)
    factor = None if gamma is None else scribe.constant(GAMMA, gamma.astype(wanted))
    last = scribe.node("first", "MatMul", [layer.input, down], inner, after=layer.add or layer.node)
    if factor is not None:
        last = scribe.node("faded", "Mul", [last.outputs[0], factor], inner, after=last)
    second = scribe.node("second", "MatMul", [last.outputs[0], up], layer.output.shape, after=last)
    scribe.add_behind("sum", second.outputs[0], after=second)
    return down, up


def _convolve(
    scribe: Scribe, left: np.ndarray, right: np.ndarray, gamma: np.ndarray | None
) -> tuple[ir.Value, ir.Value]:
    layer, wanted = scribe.layer, dtype(scribe.layer).numpy()
    shape, rank = layer.output.shape, len(right)
    inner = None if shape is None else [shape[0], rank, *list(shape)[2:]]
    ones = [1] * (len(layer.shape) - 2)
    down = scribe.constant(DOWN, right.reshape(-1, *layer.shape[1:]).astype(wanted), trained=True)
    up = scribe.constant(UP, left.reshape(-1, rank, *ones).astype(wanted), trained=True)
    factor = None if gamma is None else scribe.constant(GAMMA, gamma.reshape(rank, *ones).astype(wanted))
    attributes = {name: a.value for name, a in layer.node.attributes.items() if name != "group"}
    last = scribe.node("first", "Conv", [layer.input, down], inner, attributes, after=layer.add or layer.node)
    if factor is not None:
        last = scribe.node("faded", "Mul", [last.outputs[0], factor], inner, after=last)
    second = scribe.node("second", "Conv", [last.outputs[0], up], shape, after=last)
    scribe.add_behind("sum", second.outputs[0], after=second)
    return down, up
