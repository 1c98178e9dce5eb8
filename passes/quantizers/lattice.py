"""Weights that were integers once: a model out of an 8-bit file, or of quantization-aware training, holds
multiples of one step. Quantizing to that step loses nothing; any other scale rounds them a second time."""

from __future__ import annotations

import numpy as np

_SAMPLE = 4096  # elements that decide whether it is worth looking at all
_LEVELS = 512  # magnitudes of a 9-bit grid at most
_NOISE = 1e-3  # of a step: what float32 and a folded factor leave


def step(x: np.ndarray) -> float | None:
    """The step of the even grid through 0 on which all of ``x`` lies, or None.

    Args:
        x: Any shape, finite. More than 512 different magnitudes, or fewer than 4, are no evidence of a grid.
    """
    flat = x.ravel()
    top = float(np.abs(flat).max(initial=0))
    levels = np.unique(np.abs(flat[:: max(1, flat.size // _SAMPLE)]))
    if not 4 <= len(levels) <= _LEVELS or top == 0:
        return None
    gaps = np.diff(np.concatenate(([0.0], levels)))
    gaps = gaps[gaps > top / (2 * _LEVELS)]
    if not gaps.size:
        return None
    guess = float(gaps.min())
    codes = np.rint(flat / guess)
    guess = float(flat.astype(np.float64) @ codes) / float(codes.astype(np.float64) @ codes)
    codes = np.rint(flat / guess)
    off = np.abs(flat / guess - codes).max()
    return guess if off <= _NOISE and np.abs(codes).max() <= _LEVELS else None
