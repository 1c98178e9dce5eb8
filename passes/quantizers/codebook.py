"""Formats whose codes stand for the numbers of a book, whatever their spacing, times a scale."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphpress.arrays import array_namespace, device, is_numpy_array
from graphpress.ops.lookup_dequantize import OP as DECODE
from graphpress.ops.lookup_quantize import BOUNDS, search
from graphpress.ops.lookup_quantize import OP as ENCODE
from graphpress.passes.quantizers.affine import dot
from graphpress.passes.quantizers.quantizer import Array, Form, QParams, Quantizer
from graphpress.passes.quantizers.row_ranges import extremes, least_error
from graphpress.types import Scheme, Storage


@dataclass(frozen=True)
class Codebook(Quantizer):
    """What a format of this kind adds is its book: for each code the number, and above which bounds a code begins.

    Observers of weights: ``minmax`` lets the outermost levels reach the extremes of each channel or group; ``mse``
    shrinks that by the ratio that leaves the least squared error.
    """

    encode: ClassVar[Form] = Form("LookupQuantize", ("scale", "bounds"), ENCODE)
    decode: ClassVar[Form] = Form("LookupDequantize", ("scale", "book"), DECODE)

    @abstractmethod
    def levels(self, rows: Array, scheme: Scheme, costs: Array | None) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the codes from ``qmin`` to ``qmax``, ascending, and the bounds between them, one fewer.

        Args:
            rows, costs: As for ``fit_rows``.
        """

    def refusal(self, scheme: Scheme) -> str | None:
        kind = Storage.of(scheme.dtype)
        if kind.stored_bits not in (4, 8) or kind.floating or kind.bits < 3:
            return f"codes are stored in 4 or 8 bits, not as {scheme.dtype}"
        return None if scheme.symmetric else "it has no zero point"

    def table_bits(self, scheme: Scheme) -> int:
        return 32 << Storage.of(scheme.dtype).stored_bits

    def attributes(self, form: Form, scheme: Scheme) -> dict[str, Any]:
        lowest = {"lowest": Storage.of(scheme.storage).low}
        return lowest if form is self.decode else lowest | {"dtype": scheme.ir_dtype.value}

    def fit_rows(self, rows: Array, scheme: Scheme, costs: Array | None, tables: Mapping[str, Array]) -> QParams:
        xp = array_namespace(rows)
        if not tables:
            tables = tables_of(*self.levels(rows, scheme, costs), scheme, rows)
        lo, hi = extremes(rows)
        if scheme.observer == "mse":
            lo, hi = least_error(rows, lambda part, a, b, c: self.error(part, a, b, c, tables, scheme), costs)
        scale = self._scale(lo, hi, tables, scheme)
        zero = xp.zeros(scale.shape, dtype=xp.int8, device=device(scale))
        return QParams(scale, zero, tables)

    def codes(self, x: Array, params: QParams, scheme: Scheme) -> Array:
        xp = array_namespace(x)
        found = search(xp.astype(x, xp.float32) / params.scale, params.tables["bounds"])
        return xp.astype(found + Storage.of(scheme.storage).low, xp.float32)

    def values(self, codes: Array, params: QParams, scheme: Scheme) -> Array:
        index = codes.astype(np.int64) if is_numpy_array(codes) else codes.long()
        return params.tables["book"][index - Storage.of(scheme.storage).low] * params.scale

    def _scale(self, lo: Array, hi: Array, tables: Mapping[str, Array], scheme: Scheme) -> Array:
        """With which the outermost levels reach from ``lo`` to ``hi``."""
        xp, low = array_namespace(lo), Storage.of(scheme.storage).low
        ends = (abs(float(tables["book"][code - low])) for code in (max(scheme.qmin, -scheme.qmax), scheme.qmax))
        below, above = ends
        reach = hi / above
        reach = xp.maximum(reach, -lo / below) if below else reach
        smallest = float(np.finfo(np.float32).tiny) * 2**24
        return xp.astype(xp.where(reach > 0, xp.clip(reach, min=smallest), xp.ones_like(reach)), xp.float32)

    def error(
        self, rows: Array, lo: Array, hi: Array, costs: Array | None, tables: Mapping[str, Array], scheme: Scheme
    ) -> Array:
        """Squared error (times its cost) of each row whose outermost levels reach from ``lo`` to ``hi``."""
        xp = array_namespace(rows)
        scale = self._scale(lo, hi, tables, scheme)[:, None]
        params = QParams(scale, xp.zeros_like(scale), tables)
        off = self.values(xp.astype(self.codes(rows, params, scheme), xp.int32), params, scheme) - rows
        return dot(off if costs is None else off * costs, off)


def tables_of(levels: np.ndarray, bounds: np.ndarray, scheme: Scheme, like: Array) -> dict[str, Array]:
    """The book for all codes of the storage type, and bounds that lead to codes of the scheme only.

    Args:
        levels, bounds: As ``Codebook.levels`` gives them.
        scheme: Of the tensor.
        like: An array of the library and device that they shall be of.
    """
    kind = Storage.of(scheme.storage)
    below, above = scheme.qmin - kind.low, kind.high - scheme.qmax
    book = np.pad(levels.astype(np.float32), (below, above), mode="edge")
    open_ends = np.full(below, -np.inf), np.full(BOUNDS - below - len(bounds), np.inf)
    found = {"book": book, "bounds": np.concatenate([open_ends[0], bounds, open_ends[1]]).astype(np.float32)}
    xp = array_namespace(like)
    return {name: xp.asarray(table, device=device(like)) for name, table in found.items()}
