"""A histogram in one pass and bounded memory, that does not depend on the order or the grouping of what it saw."""

from __future__ import annotations

import math

import numpy as np

SIDE = 2048  # bins on either side of zero
_BLOCK = 1 << 16  # elements handled at a time: the buffers stay in the cache
_FINEST = -100  # lowest exponent of the bin width: its reciprocal is finite in float32


class Histogram:
    """Counts over bins of one width, a power of two, with an edge at zero.

    Bin ``i`` (from -2048 to 2047) holds the x with floor(x / width) == i. When a larger element comes, the width is
    doubled and neighbours are merged until it fits; as floor(floor(y) / 2) == floor(y / 2), the result is the same as
    if the final width had been known from the start. At least 1024 bins cover the larger side.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(2 * SIDE, np.int64)
        self.exponent = _FINEST

    @property
    def width(self) -> float:
        return math.ldexp(1.0, self.exponent)

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def add(self, x: np.ndarray, peak: float) -> None:
        """Count ``x`` (flat, float32, finite); ``peak`` is at least the largest magnitude in it."""
        needed = math.frexp(peak)[1] - (SIDE.bit_length() - 1)  # peak < 2**e, and SIDE * width = 2**e
        if needed > self.exponent:
            self._coarsen(needed - self.exponent)
        scale = np.float32(math.ldexp(1.0, -self.exponent))  # a power of two: the product is exact
        bins = np.empty(min(x.size, _BLOCK), np.float32)
        for start in range(0, x.size, _BLOCK):
            block = x[start : start + _BLOCK]
            index = np.multiply(block, scale, out=bins[: block.size])
            np.floor(index, out=index)
            index += SIDE
            self.counts += np.bincount(index.astype(np.intp), minlength=2 * SIDE)

    def _coarsen(self, steps: int) -> None:
        merge = 1 << min(steps, SIDE.bit_length() - 1)
        merged = self.counts.reshape(-1, merge).sum(axis=1)
        self.counts = np.zeros_like(self.counts)
        self.counts[SIDE - merged.size // 2 : SIDE + merged.size // 2] = merged
        self.exponent += steps

    def folded(self) -> Histogram:
        """The histogram of the magnitudes."""
        result = Histogram()
        result.exponent = self.exponent
        result.counts[SIDE:] = self.counts[SIDE:] + self.counts[:SIDE][::-1]
        return result

    def span(self) -> tuple[int, np.ndarray]:
        """(first bin, counts) of the shortest run of bins that holds all elements and touches zero."""
        used = np.flatnonzero(self.counts)
        first = min(int(used[0]), SIDE) if used.size else SIDE
        last = max(int(used[-1]) + 1, SIDE) if used.size else SIDE
        return first - SIDE, self.counts[first:last]

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """(edges, counts) over ``span``; one edge more than counts."""
        first, counts = self.span()
        return np.arange(first, first + counts.size + 1) * self.width, counts

    def quantile(self, share: float) -> float:
        """The point below which this share of the elements lies; within a bin they are taken as spread evenly."""
        edges, counts = self.edges()
        sums = np.concatenate([[0], np.cumsum(counts)])
        return float(np.interp(share * sums[-1], sums, edges)) if sums[-1] else 0.0

    def outside(self, lo: float, hi: float) -> float:
        """The share of elements below ``lo`` or above ``hi``, by the same assumption."""
        edges, counts = self.edges()
        sums = np.concatenate([[0], np.cumsum(counts)])
        below, above = np.interp([lo, hi], edges, sums)
        return float(1 - (above - below) / sums[-1]) if sums[-1] else 0.0

    def mean(self) -> float:
        edges, counts = self.edges()
        total = counts.sum()
        return float(counts @ (edges[1:] + edges[:-1]) / 2 / total) if total else 0.0

    def coarse(self, bins: int) -> tuple[float, float, tuple[int, ...]]:
        """(first edge, bin width, counts) with at most ``bins`` bins, for showing."""
        first, counts = self.span()
        merge = 1
        while counts.size > (bins - 2) * merge:
            merge *= 2
        left = first % merge
        padded = np.pad(counts, (left, -(left + counts.size) % merge))
        return (first - left) * self.width, merge * self.width, tuple(padded.reshape(-1, merge).sum(axis=1).tolist())
