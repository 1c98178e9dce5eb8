"""Recognise the canonical quantized forms: weights behind DequantizeLinear; static, dynamic, per-token activations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.keys import ORIGIN

TOKEN = ("graphpress", "DynamicQuantizeToken")
BITS = {"INT8": 8, "UINT8": 8, "INT4": 4, "UINT4": 4, "INT2": 2, "UINT2": 2}


@dataclass(frozen=True)
class Weight:
    """Integer codes of a constant, and the DequantizeLinear that gives them meaning: (codes - zero) * scale."""

    node: ir.Node

    @property
    def value(self) -> ir.Value:
        """The initializer that holds the codes."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def dtype(self) -> ir.DataType:
        assert self.value.dtype is not None
        return self.value.dtype

    @property
    def bits(self) -> int:
        return BITS[self.dtype.name]

    @property
    def codes(self) -> np.ndarray:
        """In the storage type: an ml_dtypes array below 8 bits."""
        return _array(self.value)

    @property
    def scale(self) -> np.ndarray:
        """Float32: a scalar, [channels], or the shape of the codes with one axis cut into groups."""
        return _array(self.node.inputs[1])

    @property
    def zero(self) -> np.ndarray:
        """Integers in the shape of the scale."""
        given = self.node.inputs[2] if len(self.node.inputs) > 2 else None
        return np.zeros(self.scale.shape, np.int16) if given is None else _array(given).astype(np.int16)

    @property
    def block(self) -> int:
        """Elements in a group; 0 where scales are per tensor or per channel."""
        return int(edit.attribute(self.node, "block_size", 0))

    @property
    def axis(self) -> int | None:
        """The axis with several scales, counted from the front; None for per tensor."""
        if self.scale.size == 1 and not self.block:
            return None
        tensor = edit.constant_tensor(self.value)
        assert tensor is not None
        return int(edit.attribute(self.node, "axis", 1)) % len(tensor.shape)

    @property
    def symmetric(self) -> bool:
        return not self.zero.any()


@dataclass(frozen=True)
class Matrix:
    """A weight as [K, N] codes; scale and zero are [ceil(K/group), N], one for each ``group`` rows of a column."""

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    group: int


@dataclass(frozen=True)
class Activation:
    """A quantized activation. ``codes * scale`` after subtracting ``zero``; ``zero`` is None for symmetric codes.

    ``kind`` is static (constant scale), dynamic (DynamicQuantizeLinear) or token (one scale a row).
    """

    kind: str
    source: ir.Value
    codes: ir.Value
    scale: ir.Value
    zero: ir.Value | None

    @property
    def bits(self) -> int:
        """Of codes made at run time: 8, or fewer by token."""
        maker = self.scale.producer()
        return int(edit.attribute(maker, "bits", 8)) if self.kind == "token" and maker is not None else 8


def weight(value: ir.Value | None) -> Weight | None:
    """The weight that ``value`` is, if it is the output of a DequantizeLinear of constants."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or node.domain != "":
        return None
    codes = node.inputs[0]
    known = codes is not None and codes.dtype is not None and codes.dtype.name in BITS
    return Weight(node) if known and all(v is None or edit.is_constant(v) for v in node.inputs) else None


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


def activation(value: ir.Value | None) -> Activation | None:
    """The quantized activation that ``value`` is, or None for a float one or a constant."""
    node = value.producer() if value is not None else None
    if node is None:
        return None
    if node.op_type == "Mul" and node.domain == "":
        return _token(node)
    codes = node.inputs[0] if node.op_type == "DequantizeLinear" and node.domain == "" else None
    if codes is None or edit.is_constant(codes):
        return None
    maker, scale = codes.producer(), node.inputs[1]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    assert scale is not None
    if maker is not None and maker.op_type == "DynamicQuantizeLinear":
        assert maker.inputs[0] is not None
        return Activation("dynamic", maker.inputs[0], codes, scale, zero)
    return Activation("static", codes, codes, scale, zero) if edit.is_constant(scale) else None


def _token(mul: ir.Node) -> Activation | None:
    cast, scale = (mul.inputs[0], mul.inputs[1]) if mul.inputs[0] is not None else (None, None)
    caster = cast.producer() if cast is not None else None
    maker = scale.producer() if scale is not None else None
    if caster is None or maker is None or caster.op_type != "Cast" or (maker.domain, maker.op_type) != TOKEN:
        return None
    codes, source = caster.inputs[0], maker.inputs[0]
    if codes is not maker.outputs[0] or scale is not maker.outputs[1] or source is None:
        return None
    assert scale is not None
    return Activation("token", source, codes, scale, None)


def restored(node: ir.Node, value: ir.Value | None) -> int:
    """Bits of the codes that the lowering restores to float for input ``value`` of ``node``; 0 where it does not."""
    codes = value
    for _ in range(4):  # Cast, Sub, Mul, Reshape
        maker = codes.producer() if codes is not None else None
        if maker is None or not maker.inputs or maker.metadata_props.get(ORIGIN) != node.name:
            break
        codes = maker.inputs[0]
    kind = codes.dtype.name if codes is not None and codes.dtype is not None else ""
    return BITS.get(kind, 0) if codes is not value and edit.is_constant(codes) else 0


def _array(value: ir.Value | None) -> np.ndarray:
    array = edit.constant(value)
    assert array is not None
    return array
