"""Ternary weights: -1, 0 or 1, times one scale (ternary weight networks, arXiv:1605.04711), of least squared error.

With the set of those that are not 0 the best scale is the mean of their sizes, and with a scale those are in it that
are larger than half of it: it holds the k largest numbers of a row, and what is won, ``(sum c |w|)^2 / sum c`` over
them, is looked up for every k. No search over thresholds, and no assumption on how weights are spread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphpress.arrays import array_namespace
from graphpress.passes.quantizers.quantizer import Array
from graphpress.passes.quantizers.signs import Signs

_BLOCK = 1 << 18  # elements sorted at a time


@dataclass(frozen=True)
class Ternary(Signs):
    """Codes -1, 0 and 1."""

    name: ClassVar[str] = "ternary"
    share: ClassVar[float] = 0.5

    def reach(self, sizes: Array, costs: Array) -> Array:
        xp = array_namespace(sizes)
        count = max(1, _BLOCK // max(sizes.shape[1], 1))
        parts = [slice(i, i + count) for i in range(0, max(sizes.shape[0], 1), count)]
        return xp.concat([_best(sizes[p, :], costs[p, :]) for p in parts])


QUANTIZER = Ternary


def _best(sizes: Array, costs: Array) -> Array:
    """The scale of each row."""
    xp = array_namespace(sizes)
    if not sizes.shape[1]:
        return xp.sum(sizes, axis=1)
    order = xp.argsort(-sizes, axis=1, stable=True)
    falling, weights = (xp.take_along_axis(a, order, axis=1) for a in (sizes, costs))
    mass = xp.cumulative_sum(weights, axis=1)
    total = xp.cumulative_sum(falling * weights, axis=1)
    some = xp.where(mass > 0, mass, xp.ones_like(mass))
    best = xp.argmax(total**2 / some, axis=1, keepdims=True)
    return (xp.take_along_axis(total, best, axis=1) / xp.take_along_axis(some, best, axis=1))[:, 0]
