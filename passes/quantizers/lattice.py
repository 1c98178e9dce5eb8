"""Weights that were integers once: a model out of an 8-bit file, or of quantization-aware training, holds
multiples of one step. Quantizing to that step loses nothing; any other scale rounds them a second time."""

from __future__ import annotations

from typing import Any

from graphpress.arrays import array_namespace

_SAMPLE = 4096  # elements that decide whether it is worth looking at all
_LEVELS = 512  # magnitudes of a 9-bit grid at most
_NOISE = 1e-3  # of a step: what float32 and a folded factor leave


def step(x: Any) -> float | None:
    """The step of the even grid through 0 on which all of ``x`` lies, or None.

    Args:
        x: Any shape, finite, of any array library. More than 512 different magnitudes, or fewer than 4, are no evidence
            of a grid.
    """
    xp = array_namespace(x)
    flat = xp.reshape(x, (-1,))
    if not flat.shape[0]:
        return None
    top = float(xp.max(xp.abs(flat)))
    sizes = xp.sort(xp.abs(flat[:: max(1, flat.shape[0] // _SAMPLE)]))
    levels = xp.concat([sizes[:1], sizes[1:][sizes[1:] != sizes[:-1]]])
    if not 4 <= levels.shape[0] <= _LEVELS:
        return None
    gaps = levels - xp.concat([xp.zeros_like(levels[:1]), levels[:-1]])
    gaps = gaps[gaps > top / (2 * _LEVELS)]
    if not gaps.shape[0]:
        return None
    guess = float(xp.min(gaps))
    codes = xp.astype(xp.round(flat / guess), xp.float64)
    guess = float(xp.matmul(xp.astype(flat, xp.float64), codes)) / float(xp.matmul(codes, codes))
    codes = xp.round(flat / guess)
    off = float(xp.max(xp.abs(flat / guess - codes)))
    return guess if off <= _NOISE and float(xp.max(xp.abs(codes))) <= _LEVELS else None
