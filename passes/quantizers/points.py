"""A code book: numbers of any spacing that all groups of a tensor share, each group scaled to its own range.

``Q(v) = p[argmin |sc(v) - p|] alpha + beta`` with ``sc(v) = (v - beta) / alpha``, ``beta`` the smallest number of a
group and ``alpha`` its range (Polino et al., "Model compression via distillation and quantization", 2018; buckets of
256 there). Groups lie within a row, as granularities cut them. The points can be learned: ``learn-format``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from graphpress.arrays import array_namespace, device, is_numpy_array
from graphpress.passes.quantizers.quantizer import Array, QParams
from graphpress.passes.quantizers.two_terms import SMALLEST, TwoTerms, books
from graphpress.types import Scheme

_SAMPLE = 1 << 18  # elements that the points are placed by
_ROUNDS = 50  # of k-means


@dataclass(frozen=True)
class Points(TwoTerms):
    """Levels of any spacing.

    A group of numbers reaches from its smallest to its largest, whatever the observer. A number that is 0 is not kept
    exactly.

    Attributes:
        place: Where the points of a tensor lie: ``kmeans`` (least squared error, Lloyd's algorithm from the
            percentiles), ``percentile`` (evenly many numbers between neighbours) or ``uniform``.
    """

    name: ClassVar[str] = "points"
    keeps_zero: ClassVar[bool] = False
    place: Literal["kmeans", "percentile", "uniform"] = "kmeans"

    def refusal(self, scheme: Scheme) -> str | None:
        if scheme.dtype not in ("int8", "int4", "int3", "int2"):
            return f"codes are int8, int4, int3 or int2, not {scheme.dtype}"
        return None if scheme.symmetric else "its offsets are numbers of their own: it has no zero point"

    def unsuited(self, count: int, scheme: Scheme) -> str | None:
        codes = scheme.qmax - scheme.qmin + 1
        return f"a book of {codes} points for {count} numbers" if count < codes else None

    def fit_rows(self, rows: Array, scheme: Scheme, costs: Array | None, tables: Mapping[str, Array]) -> QParams:
        xp = array_namespace(rows)
        low, high = xp.min(rows, axis=1), xp.max(rows, axis=1)
        scale = xp.clip(high - low, min=SMALLEST)
        if not tables:
            made = self._placed(rows, low, scale, scheme, costs)
            tables = books(made, np.ones_like(made), scheme, rows)
        zero = xp.zeros(scale.shape, dtype=xp.int8, device=device(rows))
        return QParams(scale, zero, tables, {"second": low})

    def learnable(self, scheme: Scheme) -> tuple[str, ...]:
        return "scale", "second", "book"

    def _placed(self, rows: Array, low: Array, scale: Array, scheme: Scheme, costs: Array | None) -> np.ndarray:
        count = scheme.qmax - scheme.qmin + 1
        if self.place == "uniform":
            return np.linspace(0, 1, count)
        step = max(1, rows.shape[0] * rows.shape[1] // _SAMPLE)
        share = (rows - low[:, None]) / scale[:, None]
        worth = array_namespace(rows).zeros_like(rows) + scale[:, None] ** 2
        seen, weights = (_some(a, step) for a in (share, worth if costs is None else worth * costs))
        points = np.quantile(seen, np.linspace(0, 1, count))
        return _apart(k_means(seen, weights, points) if self.place == "kmeans" else points)


QUANTIZER = Points


def _some(array: Array, step: int) -> np.ndarray:
    flat = array if is_numpy_array(array) else array.cpu().numpy()
    found: np.ndarray = flat.reshape(-1)[::step].astype(np.float64)
    return found


def k_means(numbers: np.ndarray, weights: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points moved to the weighted means of the numbers that are nearest to them, until that moves nothing.

    Args:
        numbers, weights: [n]; weights positive.
        points: [k], ascending; one that no number is nearest to stays where it is.
    """
    order = np.argsort(numbers)
    sums = [np.concatenate([[0.0], np.cumsum(a[order])]) for a in (weights, weights * numbers)]
    numbers = numbers[order]
    for _ in range(_ROUNDS):
        cuts = np.concatenate([[0], np.searchsorted(numbers, (points[:-1] + points[1:]) / 2), [len(numbers)]])
        mass, total = (np.diff(s[cuts]) for s in sums)
        moved = np.sort(np.where(mass > 0, total / np.where(mass > 0, mass, 1), points))
        if np.array_equal(moved, points):
            break
        points = moved
    return points


def _apart(points: np.ndarray) -> np.ndarray:
    """Ascending strictly: points that coincide, as those of a tensor of few numbers do, are set a little apart."""
    least = 2.0**-18
    found: np.ndarray = np.maximum.accumulate(np.sort(points) - least * np.arange(len(points)))
    return found + least * np.arange(len(points))
