"""Levels spaced by powers of two, those of each sign for themselves (TLQ, twin-log quantization: LRQ-DiT).

A code is a rounded logarithm, ``q = clip(round(log2|x| / s) - z, 0, n - 1)`` with a step ``s`` and an offset of their
own for each sign, so neighbouring levels stand in the ratio ``2^s``: dense near zero, for weights with long tails. Of n
levels the largest is the clipped maximum of its sign, the smallest lies ``octaves`` below it: at ``min|x|`` instead, a
few numbers next to zero would take all levels. As ``s (q + z) = f + r`` with f whole, a level is one of few constants
``2^r`` shifted by f bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphpress.arrays import array_namespace, device
from graphpress.ops.twin_lookup_dequantize import OP as DECODE
from graphpress.ops.twin_lookup_dequantize import at
from graphpress.ops.twin_lookup_quantize import BOUNDS, search_rows
from graphpress.ops.twin_lookup_quantize import OP as ENCODE
from graphpress.passes.quantizers.quantizer import Array, Form, QParams, Quantizer
from graphpress.types import Scheme, Storage

_APART = 0.5
OCTAVES = np.arange(2, 10 + _APART, _APART)  # that the levels of one sign reach over: a row of the book each
_CLIPS = (1.0, 0.85, 0.7, 0.55, 0.4)  # of the maximum, then these around the best
_FINE_CLIPS = (-0.1, -0.05, 0.05, 0.1)
_ROWS = (1, 5, 9, 13)  # of the book that are tried first, and then these around the best
_FINE_ROWS = (-2, -1, 1, 2)
_TINY = float(np.finfo(np.float32).tiny) * 2**24
_SAMPLE = 2048  # elements of a row that the search looks at
_BLOCK = 1 << 16  # elements searched at a time: they stay in the cache
_TWIN = ("negative", "row", "negative_row")


@dataclass(frozen=True)
class TwinLog(Quantizer):
    """Levels spaced by powers of two for each sign.

    Every number keeps its sign. Numbers that are exactly zero stay so where a tensor has some (pruned weights, dead
    channels), which takes one level of the positive ones; else all levels stand for other numbers.

    Observers of weights: ``minmax`` lets the largest level of each sign reach its extreme and searches how far down the
    others go; ``mse`` searches for both what leaves the least squared error.
    """

    name: ClassVar[str] = "tlq"
    encode: ClassVar[Form] = Form("TwinLookupQuantize", ("scale", *_TWIN, "bounds"), ENCODE)
    decode: ClassVar[Form] = Form("TwinLookupDequantize", ("scale", *_TWIN, "book"), DECODE)
    beside: ClassVar[tuple[str, ...]] = _TWIN

    def refusal(self, scheme: Scheme) -> str | None:
        if scheme.dtype not in ("int4", "int3"):
            return f"codes are int4 or int3, not {scheme.dtype}: more logarithmic levels crowd at zero"
        return None if scheme.symmetric else "it has no zero point"

    def in_kernel(self, scheme: Scheme) -> Scheme | None:
        return None

    def attributes(self, form: Form, scheme: Scheme) -> dict[str, Any]:
        lowest = {"lowest": Storage.of(scheme.storage).low}
        return lowest if form is self.decode else lowest | {"dtype": scheme.ir_dtype.value}

    def table_bits(self, scheme: Scheme) -> int:
        return 32 * len(OCTAVES) << Storage.of(scheme.dtype).stored_bits

    def beside_bits(self, scale_bits: int) -> int:
        return scale_bits + 2 * 8  # the other scale, and two rows of the book

    def fit_rows(self, rows: Array, scheme: Scheme, costs: Array | None, tables: Mapping[str, Array]) -> QParams:
        xp = array_namespace(rows)
        if not tables:
            made = book_and_bounds(scheme, zero=bool(xp.any(rows == 0)))
            tables = {n: xp.asarray(t, device=device(rows)) for n, t in zip(("book", "bounds"), made, strict=True)}
        count = max(1, _BLOCK // max(rows.shape[1], 1))
        parts = [slice(i, i + count) for i in range(0, max(rows.shape[0], 1), count)]
        zero = not float(tables["book"][0, -Storage.of(scheme.storage).low])
        found = [_Search(rows[p, :], None if costs is None else costs[p, :], zero, scheme).run() for p in parts]
        scale, negative, row, negative_row = (xp.concat(a) for a in zip(*found, strict=True))
        none = xp.zeros(scale.shape, dtype=xp.int8, device=device(rows))
        return QParams(scale, none, tables, {"negative": negative, "row": row, "negative_row": negative_row})

    def codes(self, x: Array, params: QParams, scheme: Scheme) -> Array:
        xp = array_namespace(x)
        line = xp.astype(xp.where(x < 0, params.beside["negative_row"], params.beside["row"]), xp.int64)
        steps = xp.astype(x, xp.float32) / self.unit(x, params)
        found = search_rows(steps, params.tables["bounds"], xp.broadcast_to(line, x.shape))
        return xp.astype(found + Storage.of(scheme.storage).low, xp.float32)

    def values(self, codes: Array, params: QParams, scheme: Scheme) -> Array:
        xp = array_namespace(params.scale)
        code = xp.astype(codes, xp.int64)
        line = xp.astype(xp.where(code < 0, params.beside["negative_row"], params.beside["row"]), xp.int64)
        number = at(params.tables["book"], line, code - Storage.of(scheme.storage).low)
        return number * self.unit(code, params)

    def unit(self, x: Array, params: QParams) -> Array:
        return array_namespace(x).where(x < 0, params.beside["negative"], params.scale)

    def learnable(self, scheme: Scheme) -> tuple[str, ...]:
        return "scale", "negative"


QUANTIZER = TwinLog


def book_and_bounds(scheme: Scheme, *, zero: bool) -> tuple[np.ndarray, np.ndarray]:
    """Levels as shares of the largest of their sign, and the bounds between them: a row for each of ``OCTAVES``.

    Args:
        scheme: Gives codes and storage type.
        zero: Whether code 0 stands for 0, not for the smallest positive level.

    Returns:
        float32 [rows, codes of the storage type] and [rows, 15]. Bounds are the geometric means of levels.
    """
    kind, low, high = Storage.of(scheme.storage), scheme.qmin, scheme.qmax
    above, middles = _ladder(high + 1 - zero)
    below, under = _ladder(-low)
    rows = len(OCTAVES)
    nothing, edge = np.zeros((rows, int(zero))), np.full((rows, 1), -float(np.finfo(np.float32).tiny))
    book = np.concatenate([-below[:, ::-1], nothing, above], axis=1)
    bounds = np.concatenate([-under[:, ::-1], edge, nothing, middles], axis=1)
    outer = low - kind.low, kind.high - high
    book = np.pad(book, ((0, 0), outer), mode="edge")
    open_ends = (np.full((rows, n), end) for n, end in zip(outer, (-np.inf, np.inf), strict=True))
    first, last = open_ends
    found = np.concatenate([first, bounds, last], axis=1)
    assert found.shape[1] == BOUNDS
    return book.astype(np.float32), found.astype(np.float32)


def _ladder(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Levels of one sign, ascending to 1, and what lies midway between their logarithms."""
    share = OCTAVES[:, None] / (count - 1)
    return np.exp2(share * np.arange(1 - count, 1)), np.exp2(share * np.arange(1.5 - count, 0))


@dataclass
class _Search:
    """The clip and the row of the book of least squared error, for each row of a weight and each sign.

    Levels are computed, not looked up, and measured in the largest of their sign.
    """

    rows: Array
    costs: Array | None
    zero: bool  # whether code 0 stands for 0
    scheme: Scheme

    def __post_init__(self) -> None:
        xp, rows = array_namespace(self.rows), self.rows
        nothing = xp.zeros((rows.shape[0], 1), dtype=rows.dtype, device=device(rows))
        tops = [xp.max(xp.concat([nothing, side], axis=1), axis=1) for side in (rows, -rows)]
        self.tops = [xp.where(a > 0, a, xp.where(b > 0, b, xp.ones_like(a))) for a, b in (tops, tops[::-1])]
        some = slice(None, None, max(1, rows.shape[1] // _SAMPLE))
        seen = rows[:, some]
        self.below = seen < 0
        self.size = xp.abs(seen) / self._of_sign(self.tops)
        self.log = xp.log2(xp.clip(self.size, min=_TINY))
        self.steps = self._of_sign(
            [0 * top + self.scheme.qmax - int(i) for top, i in zip(self.tops, (self.zero, 0), strict=True)]
        )
        self.weights = xp.ones_like(self.size) if self.costs is None else self.costs[:, some]
        if self.zero:
            self.weights = xp.where(self.size > 0, self.weights, xp.zeros_like(self.weights))

    def _of_sign(self, pair: list[Array]) -> Array:
        return array_namespace(self.below).where(self.below, pair[1][:, None], pair[0][:, None])

    def run(self) -> tuple[Array, Array, Array, Array]:
        """(scale, that of negative numbers, row of the book, that of negative numbers), [R] each."""
        xp, clips = array_namespace(self.rows), self.scheme.observer == "mse"
        self.clip, self.line = ([0 * top + start for top in self.tops] for start in (1.0, _ROWS[1]))
        self.least = self._errors(self.clip, self.line)
        for clip in _CLIPS if clips else (1.0,):
            for row in _ROWS:
                self._try([0 * c + clip for c in self.clip], [0 * r + row for r in self.line])
        for step in _FINE_ROWS:
            self._try(self.clip, [r + step for r in self.line])
        for change in _FINE_CLIPS if clips else ():
            self._try([c + change for c in self.clip], self.line)
        scales = (xp.clip(c * top, min=_TINY) for c, top in zip(self.clip, self.tops, strict=True))
        scale, negative = (xp.astype(s, xp.float32) for s in scales)
        row, negative_row = (xp.astype(r, xp.uint8) for r in self.line)
        return scale, negative, row, negative_row

    def _try(self, clip: list[Array], line: list[Array]) -> None:
        """Keep these clips and rows of the book where they leave less error."""
        xp, rows = array_namespace(self.rows), [self._inside(r) for r in line]
        for side, error in enumerate(self._errors(clip, rows)):
            better = (error < self.least[side]) & (clip[side] <= 1)
            for kept, new in ((self.clip, clip), (self.line, rows), (self.least, {side: error})):
                kept[side] = xp.where(better, new[side], kept[side])

    @staticmethod
    def _inside(row: Array) -> Array:
        return array_namespace(row).clip(row, 0, len(OCTAVES) - 1)

    def _errors(self, clip: list[Array], line: list[Array]) -> list[Array]:
        """Squared error (times its cost) of each row: of its numbers from 0 on, and of the others."""
        xp = array_namespace(self.rows)
        top, octaves = self._of_sign(clip), self._of_sign([r * _APART + float(OCTAVES[0]) for r in line])
        step = octaves / self.steps
        codes = xp.clip(xp.round((self.log - xp.log2(top) + octaves) / step), 0, self.steps)
        off = xp.exp2(codes * step - octaves) * top - self.size
        off = off * off * self.weights
        under = xp.where(self.below, off, xp.zeros_like(off))
        return [xp.sum(part, axis=1, dtype=xp.float64) for part in (off - under, under)]
