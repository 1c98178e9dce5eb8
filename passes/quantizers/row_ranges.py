"""Ranges of the rows of a weight: their extremes, or what leaves the least error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from graphpress.arrays import array_namespace, device

Array: TypeAlias = Any
Error: TypeAlias = Callable[[Array, Array, Array, Array | None], Array]  # of (rows, lo, hi, costs): [R]

_COARSE = np.linspace(1, 0.2, 9).tolist()  # how far a weight's range may shrink
_FINE = (-0.075, -0.05, -0.025, 0.025, 0.05, 0.075)  # around the best of those
_BLOCK = 1 << 16  # elements searched at a time: they stay in the cache


def extremes(rows: Array) -> tuple[Array, Array]:
    """(smallest, largest) element of each row [R, n], or 0 where all lie on one side of it."""
    xp = array_namespace(rows)
    if not rows.shape[1]:
        zeros = xp.zeros(rows.shape[0], dtype=rows.dtype, device=device(rows))
        return zeros, zeros
    return xp.minimum(xp.min(rows, axis=1), 0.0), xp.maximum(xp.max(rows, axis=1), 0.0)


def least_error(rows: Array, error: Error, costs: Array | None = None) -> tuple[Array, Array]:
    """Extremes shrunk by the ratio, from 1 to about 0.2, at which ``error`` is least."""
    xp = array_namespace(rows)
    count = max(1, _BLOCK // max(rows.shape[1], 1))
    parts = [slice(i, i + count) for i in range(0, rows.shape[0], count)]
    found = [_shrunk(rows[p, :], error, None if costs is None else costs[p, :]) for p in parts]
    if not found:
        return extremes(rows)
    lo, hi = zip(*found, strict=True)
    return xp.concat(lo), xp.concat(hi)


def _shrunk(rows: Array, error: Error, costs: Array | None) -> tuple[Array, Array]:
    xp = array_namespace(rows)
    lo, hi = extremes(rows)
    best, least = xp.ones_like(lo), error(rows, lo, hi, costs)
    for base, steps in ((0.0, _COARSE[1:]), (1.0, _FINE)):
        center = base * best
        for step in steps:
            ratio = center + step
            found = xp.where(ratio <= 1, error(rows, lo * ratio, hi * ratio, costs), xp.inf)
            best, least = xp.where(found < least, ratio, best), xp.minimum(found, least)
    return lo * best, hi * best
