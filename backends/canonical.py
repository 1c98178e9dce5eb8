"""What lowering asks of quantized operands beyond what they are: weights as matrices, weights that it restores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.graph.grid import is_dequantize, is_quantize
from graphpress.graph.quantized import SCALE, Activation, Weight, activation, stored, weight
from graphpress.keys import ORIGIN
from graphpress.types import Storage

__all__ = ["Activation", "Matrix", "Weight", "activation", "by_step", "matrix", "restored", "weight"]


@dataclass(frozen=True)
class Matrix:
    """A weight as [K, N] codes; scale and zero are [ceil(K/group), N], one for each ``group`` rows of a column."""

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    group: int


def matrix(w: Weight, *, transposed: bool) -> Matrix | None:
    """The weight of a MatMul or Gemm, stored as [K, N] or ([N, K], ``transposed``); None where scales do not fit."""
    codes, scale, zero = w.codes, w.scale, w.zero
    if codes.ndim != 2:
        return None
    rows, columns = (1, 0) if transposed else (0, 1)
    if w.axis is None:
        scale, zero = (np.full((1, codes.shape[columns]), a.reshape(-1)[0], a.dtype) for a in (scale, zero))
        group = codes.shape[rows]
    elif not w.block:
        if w.axis != columns:
            return None
        scale, zero, group = scale[None], zero[None], codes.shape[rows]
    elif w.axis != rows:
        return None
    else:
        scale, zero = (a.T if transposed else a for a in (scale, zero))
        group = w.block
    return Matrix(codes.T if transposed else codes, scale, zero, group)


def restored(node: ir.Node, value: ir.Value | None) -> int:
    """Bits of the codes that the lowering restores to float for input ``value`` of ``node``; 0 where it does not."""
    if (w := stored(value)) is not None and w.node.domain:
        return int(w.dtype.bitwidth)
    codes = value
    for _ in range(4):  # Cast, Sub, Mul, Reshape
        maker = codes.producer() if codes is not None else None
        if maker is None or not maker.inputs or maker.metadata_props.get(ORIGIN) != node.name:
            break
        codes = maker.inputs[0]
    kind = Storage.of_codes(codes.dtype) if codes is not None else None
    return kind.bits if kind is not None and codes is not value and edit.is_constant(codes) else 0


def by_step(value: ir.Value | None) -> Activation | None:
    """The activation that ``value`` is, if its scale is gathered from a table when the model runs (kind step): one, or
    one for each sample."""
    node = value.producer() if value is not None else None
    maker = node.inputs[0].producer() if is_dequantize(node) and node.inputs[0] is not None else None
    if node is None or not is_quantize(maker) or node.inputs[1:] != maker.inputs[1:]:
        return None
    source, codes, scale = maker.inputs[0], node.inputs[0], node.inputs[SCALE]
    table = scale.producer() if scale is not None else None
    if source is None or codes is None or scale is None or table is None or table.op_type != "Gather":
        return None
    return Activation("step", source, codes, scale, node.inputs[2] if len(node.inputs) > 2 else None)
