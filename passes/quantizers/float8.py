"""Floats of 8 bits in scales, as ONNX has them from opset 19: e4m3 (3 bits of mantissa, up to 448), e5m2 (2, to 57344).

Micikevicius et al., "FP8 formats for deep learning", 2022, arXiv:2209.05433. A number keeps 3 or 4 binary digits over
many octaves, so ranges need less care than those of integers; near the largest, steps are wide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from graphpress.arrays import array_namespace, device, is_numpy_array
from graphpress.passes.quantizers.affine import dot
from graphpress.passes.quantizers.quantizer import Array, QParams, Quantizer, stored
from graphpress.passes.quantizers.row_ranges import extremes, least_error
from graphpress.scale import scale_and_zero
from graphpress.types import AFFINE, Scheme

_TORCH = {"float8e4m3fn": "float8_e4m3fn", "float8e5m2": "float8_e5m2"}


@dataclass(frozen=True)
class Float8(Quantizer):
    """8-bit floats. Observers: ``minmax`` lets the largest float reach the extremes, ``mse`` shrinks that."""

    name: ClassVar[str] = "float8"

    def refusal(self, scheme: Scheme) -> str | None:
        if not scheme.floating:
            return f"codes are {' or '.join(_TORCH)}, not {scheme.dtype}"
        return None if scheme.symmetric else "floats have no zero point"

    def in_kernel(self, scheme: Scheme) -> Scheme | None:
        return replace(scheme, quantizer=AFFINE)

    def fit_rows(self, rows: Array, scheme: Scheme, costs: Array | None, tables: Mapping[str, Array]) -> QParams:
        lo, hi = extremes(rows)
        if scheme.observer == "mse":
            lo, hi = least_error(rows, lambda part, a, b, c: self._error(part, a, b, c, scheme), costs)
        scale, zero = scale_and_zero(lo, hi, scheme)
        return QParams(scale, stored(zero, scheme) if is_numpy_array(zero) else zero)

    def codes(self, x: Array, params: QParams, scheme: Scheme) -> Array:
        """Floats of 8 bits, as float32."""
        xp = array_namespace(x)
        steps = xp.clip(xp.astype(x, xp.float32) / params.scale, scheme.qmin, scheme.qmax)
        return rounded_to(steps, scheme.dtype)

    def whole(self, codes: Array) -> Array:
        return codes

    def values(self, codes: Array, params: QParams, scheme: Scheme) -> Array:
        xp = array_namespace(params.scale)
        return xp.astype(codes, xp.float32) * params.scale

    def quantize(self, x: Array, params: QParams, scheme: Scheme) -> Array:
        """Of the storage type in numpy, of float32 elsewhere."""
        codes = self.codes(x, self.spread(params, x.shape, scheme), scheme)
        return codes.astype(scheme.ir_dtype.numpy()) if is_numpy_array(codes) else codes

    @classmethod
    def every_code(cls, scheme: Scheme) -> np.ndarray:
        bits = np.arange(256, dtype=np.uint8).view(scheme.ir_dtype.numpy()).astype(np.float32)
        return np.unique(bits[np.isfinite(bits)])

    def ends(self, params: QParams, shape: tuple[int, ...], scheme: Scheme) -> tuple[Array, Array]:
        xp = array_namespace(params.scale)
        ones = xp.ones(shape, dtype=xp.float32, device=device(params.scale))
        low, high = (self.dequantize(ones * end, params, scheme) for end in (scheme.qmin, scheme.qmax))
        return low, high

    def _error(self, rows: Array, lo: Array, hi: Array, costs: Array | None, scheme: Scheme) -> Array:
        scale, _ = scale_and_zero(lo, hi, scheme)
        off = self.nearest(rows, QParams(scale[:, None], scale[:, None]), scheme) - rows
        return dot(off if costs is None else off * costs, off)


QUANTIZER = Float8


def rounded_to(numbers: Array, dtype: str) -> Array:
    """float32 numbers in the range of a type of 8-bit floats, to its nearest, halves to even."""
    if is_numpy_array(numbers):
        return numbers.astype(Scheme(dtype).ir_dtype.numpy()).astype(np.float32)
    import torch

    kind: Any = getattr(torch, _TORCH[dtype])
    return numbers.to(kind).to(torch.float32)
