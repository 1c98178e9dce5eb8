"""From a range of real numbers to the scale and zero point of a scheme: the arithmetic that all quantizers share."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from graphpress.arrays import array_namespace, device
from graphpress.types import Scheme

Array: TypeAlias = Any

SMALLEST = 2.0**-60  # the product of two scales is the scale of a bias, and stays a normal number


def middle(scheme: Scheme) -> int:
    """The zero point of symmetric schemes: 0 for signed codes, 128 for uint8, 8 for uint4, 2 for uint2."""
    return (scheme.qmin + scheme.qmax + 1) // 2


def scale_and_zero(lo: Array | float, hi: Array | float, scheme: Scheme) -> tuple[Array, Array]:
    """Step and zero point with which the codes of ``scheme`` reach from ``lo`` to ``hi``.

    Asymmetric: s = (hi - lo) / (qmax - qmin), z = round(qmin - lo / s) saturated, as in ONNX DynamicQuantizeLinear.
    Symmetric: z is the middle code. With 8 or more bits s = max(-lo, hi) / (qmax - z): the ends are exact, the lowest
    code is never used, and codes can be negated. Below 8 bits one code is worth 7 to 33 percent of the range, so all
    are used, and s is the smallest step that leaves no x in [lo, hi] further than s / 2 from its code:
    s = max(-lo / (z - qmin + 1/2), hi / (qmax - z + 1/2)). On trained weights this has a quarter (4 bits) to a half
    (2 bits) less squared error than exact ends.

    Args:
        lo, hi: Any equal shape, of any array library; the range is widened to hold 0, so that 0 has a code of its own.
        scheme: Gives the codes and the symmetry.

    Returns:
        float32 scale (1 where lo = hi = 0; never zero, subnormal or infinite) and int32 zero point, shaped as ``lo``.
    """
    xp, low, high = _wide(lo, hi)
    low, high = xp.minimum(low, 0.0), xp.maximum(high, 0.0)
    if scheme.symmetric:
        mid = middle(scheme)
        above, below = scheme.qmax - mid, mid - scheme.qmin
        if scheme.bits >= 8:
            step = xp.maximum(-low, high) / above
        else:
            step = xp.maximum(-low / (below + 0.5), high / (above + 0.5))
    else:
        step = (high - low) / (scheme.qmax - scheme.qmin)
    largest = float(np.finfo(np.float32).max) / 2.0**scheme.bits  # every dequantized code stays finite
    step = xp.where(step == 0, xp.ones_like(step), xp.clip(step, SMALLEST, largest))
    scale = xp.astype(step, xp.float32)
    if scheme.symmetric:
        return scale, xp.full(scale.shape, mid, dtype=xp.int32, device=device(scale))
    zero = xp.round(scheme.qmin - low / scale)
    return scale, xp.astype(xp.clip(zero, scheme.qmin, scheme.qmax), xp.int32)


def _wide(lo: Array | float, hi: Array | float) -> tuple[Any, Array, Array]:
    """The library that the numbers are of, and both in float64."""
    if isinstance(lo, float | int | np.generic):
        lo, hi = np.asarray(lo, np.float64), np.asarray(hi, np.float64)
    xp = array_namespace(lo, hi)
    return xp, xp.astype(xp.asarray(lo), xp.float64), xp.astype(xp.asarray(hi), xp.float64)
