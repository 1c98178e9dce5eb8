"""Formats whose codes are signs: 1 and -1, with 0 between them or without; DequantizeLinear gives numbers back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from graphpress.arrays import array_namespace, is_numpy_array
from graphpress.ops.sign_quantize import OP as ENCODE
from graphpress.ops.sign_quantize import signs
from graphpress.passes.quantizers.quantizer import Array, Form, QParams, Quantizer, stored
from graphpress.scale import SMALLEST
from graphpress.types import AFFINE, Scheme


@dataclass(frozen=True)
class Signs(Quantizer):
    """What a format of this kind adds is the scale of least squared error, which all observers mean.

    Codes stand in an int4 tensor, whose kernels multiply by them; a file packs them (``pack-codes``).

    Attributes:
        share: Of the scale, below which a number becomes 0.
    """

    encode: ClassVar[Form] = Form("SignQuantize", ("scale",), ENCODE)
    share: ClassVar[float]

    @abstractmethod
    def reach(self, sizes: Array, costs: Array) -> Array:
        """The scale of each row, [R], of sizes [R, n] that cost so much, both at least 0."""

    def refusal(self, scheme: Scheme) -> str | None:
        if scheme.dtype != self.name:
            return f"codes are {self.name}, not {scheme.dtype}"
        return None if scheme.symmetric else "it has no zero point"

    def in_kernel(self, scheme: Scheme) -> Scheme | None:
        return replace(scheme, quantizer=AFFINE)

    def attributes(self, form: Form, scheme: Scheme) -> dict[str, Any]:
        return {"share": self.share, "dtype": scheme.ir_dtype.value} if form is self.encode else {}

    def fit_rows(self, rows: Array, scheme: Scheme, costs: Array | None, tables: Mapping[str, Array]) -> QParams:
        xp = array_namespace(rows)
        sizes = xp.astype(xp.abs(rows), xp.float64)
        found = self.reach(sizes, xp.ones_like(sizes) if costs is None else xp.astype(costs, xp.float64))
        scale = xp.astype(xp.where(found > 0, xp.clip(found, min=SMALLEST), xp.ones_like(found)), xp.float32)
        zero = xp.astype(xp.zeros_like(scale), xp.int32)
        return QParams(scale, stored(zero, scheme) if is_numpy_array(zero) else zero)

    def codes(self, x: Array, params: QParams, scheme: Scheme) -> Array:
        xp = array_namespace(x)
        return signs(xp.astype(x, xp.float32) / params.scale, self.share)

    def values(self, codes: Array, params: QParams, scheme: Scheme) -> Array:
        return codes.astype(np.float32) * params.scale if is_numpy_array(codes) else codes * params.scale

    def clipped(self, x: Array, params: QParams, scheme: Scheme) -> Array:
        """As they are: no number is too large to have a sign."""
        return x


def mean(sizes: Array, costs: Array) -> Array:
    """The mean of each row, weighted; 0 of what costs nothing."""
    xp = array_namespace(sizes)
    mass = xp.sum(costs, axis=1)
    return xp.sum(sizes * costs, axis=1) / xp.where(mass > 0, mass, xp.ones_like(mass))
