"""Small floats in blocks with a scale of 8 bits each and one float32 for the tensor: MXFP4, MXFP8, NVFP4.

ONNX Runtime 1.32's CPU provider has no kernel for FLOAT4E2M1 and none for FLOAT8E8M0, so codes are written as integers
that stand for the floats, in ascending order, and the scales of MX (powers of two) as e5m2 beside a power of two for
the tensor: the same numbers, as long as the scales of a tensor lie within 30 octaves; smaller ones become the smallest.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphpress.arrays import array_namespace, device
from graphpress.ops.block_lookup_dequantize import OP as DECODE
from graphpress.ops.block_lookup_quantize import OP as ENCODE
from graphpress.ops.lookup_quantize import search
from graphpress.passes.quantizers.affine import dot
from graphpress.passes.quantizers.codebook import tables_of
from graphpress.passes.quantizers.quantizer import Array, Form, QParams, Quantizer
from graphpress.passes.quantizers.row_ranges import extremes, least_error
from graphpress.types import Scheme, Storage


@dataclass(frozen=True)
class BlockFloats(Quantizer):
    """What a format of this kind adds: its floats, and how it rounds the scales of blocks.

    ``scale`` of its parameters is that of the block alone: a number has the unit ``scale * outer``. Observers:
    ``minmax`` reaches the extremes of each block, ``mse`` takes the range of least squared error.

    Attributes:
        dtype: The type of codes that it has.
        scale_dtype: The storage type of the scales of blocks.
        positive: The floats above 0, ascending; every second one, from the first on, is odd.
        headroom: How far beyond the extremes the search for a range begins.
    """

    encode: ClassVar[Form] = Form("BlockLookupQuantize", ("scale", "outer", "bounds"), ENCODE)
    decode: ClassVar[Form] = Form("BlockLookupDequantize", ("scale", "outer", "book"), DECODE)
    dtype: ClassVar[str]
    scale_dtype: ClassVar[str]
    positive: ClassVar[tuple[float, ...]]
    headroom: ClassVar[float] = 1.0

    @abstractmethod
    def outermost(self, reach: Array) -> Array:
        """``outer`` for a tensor whose largest block needs a unit of ``reach``; [1]."""

    @abstractmethod
    def inner(self, reach: Array, outer: Array) -> Array:
        """Scales of blocks, as numbers of ``scale_dtype`` in float32, for units of ``reach``."""

    def refusal(self, scheme: Scheme) -> str | None:
        if scheme.dtype != self.dtype:
            return f"its floats are written as codes of {self.dtype}, not {scheme.dtype}"
        return None if scheme.symmetric else "it has no zero point"

    def in_kernel(self, scheme: Scheme) -> Scheme | None:
        return None

    def attributes(self, form: Form, scheme: Scheme) -> dict[str, Any]:
        lowest = {"lowest": Storage.of(scheme.storage).low}
        return lowest if form is self.decode else lowest | {"dtype": scheme.ir_dtype.value}

    def table_bits(self, scheme: Scheme) -> int:
        return 32 + (32 << Storage.of(scheme.dtype).stored_bits)

    def bits(self, shape: tuple[int, ...], scheme: Scheme, scale_bits: int = 8) -> int:
        return super().bits(shape, scheme, 8)

    def fit_rows(self, rows: Array, scheme: Scheme, costs: Array | None, tables: Mapping[str, Array]) -> QParams:
        xp, (lo, hi) = array_namespace(rows), extremes(rows)
        if not tables:
            tables = self._tables(rows, self._reach(lo, hi), scheme)
        if scheme.observer == "mse":
            more = self.headroom
            lo, hi = least_error(
                rows, lambda part, a, b, c: self._error(part, a * more, b * more, c, tables, scheme), costs
            )
            lo, hi = lo * more, hi * more
        scale = self.inner(self._reach(lo, hi), tables["outer"])
        return QParams(scale, xp.zeros(scale.shape, dtype=xp.int8, device=device(scale)), tables)

    def codes(self, x: Array, params: QParams, scheme: Scheme) -> Array:
        xp = array_namespace(x)
        found = search(xp.astype(x, xp.float32) / self.unit(x, params), params.tables["bounds"])
        return xp.astype(found + Storage.of(scheme.storage).low, xp.float32)

    def values(self, codes: Array, params: QParams, scheme: Scheme) -> Array:
        xp = array_namespace(params.scale)
        index = xp.astype(codes, xp.int64) - Storage.of(scheme.storage).low
        return params.tables["book"][index] * self.unit(codes, params)

    def unit(self, x: Array, params: QParams) -> Array:
        return params.scale * params.tables["outer"]

    @classmethod
    def every_code(cls, scheme: Scheme) -> np.ndarray:
        count = len(cls.positive)
        return np.arange(-count, count + 1, dtype=np.int32)

    def _reach(self, lo: Array, hi: Array) -> Array:
        """The unit with which the largest float reaches both ends of each block."""
        xp = array_namespace(lo)
        return xp.astype(xp.maximum(-lo, hi), xp.float32) / self.positive[-1]

    def _tables(self, rows: Array, reach: Array, scheme: Scheme) -> dict[str, Array]:
        xp, kind = array_namespace(rows), Storage.of(scheme.storage)
        positive = np.array(self.positive)
        levels = np.concatenate([-positive[::-1], [0.0], positive])
        middles = ((levels[:-1] + levels[1:]) / 2).astype(np.float32)
        upper_is_even = (np.arange(len(middles)) + 1 - len(positive)) % 2 == 0
        bounds = np.where(upper_is_even, np.nextafter(middles, np.float32(-np.inf)), middles)  # halves to even
        below, above = -len(positive) - kind.low, kind.high - len(positive)
        levels = np.pad(levels, (below, above), mode="edge")
        bounds = np.concatenate([np.full(below, -np.inf), bounds, np.full(above, np.inf)])
        found = tables_of(levels, bounds, Scheme(scheme.storage), rows)
        largest = xp.max(reach) if reach.shape[0] else xp.zeros((), dtype=xp.float32, device=device(rows))
        return found | {"outer": xp.reshape(xp.astype(self.outermost(largest), xp.float32), (1,))}

    def _error(
        self, rows: Array, lo: Array, hi: Array, costs: Array | None, tables: Mapping[str, Array], scheme: Scheme
    ) -> Array:
        scale = self.inner(self._reach(lo, hi), tables["outer"])[:, None]
        off = self.nearest(rows, QParams(scale, scale, tables), scheme) - rows
        return dot(off if costs is None else off * costs, off)
