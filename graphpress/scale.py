"""From a range of real numbers to the scale and zero point of a scheme: the arithmetic that all quantizers share."""

from __future__ import annotations

import numpy as np

from graphpress.types import Scheme

SMALLEST = 2.0**-60  # the product of two scales is the scale of a bias, and stays a normal number


def middle(scheme: Scheme) -> int:
    """The zero point of symmetric schemes: 0 for signed codes, 128 for uint8, 8 for uint4, 2 for uint2."""
    return (scheme.qmin + scheme.qmax + 1) // 2


def scale_and_zero(lo: np.ndarray | float, hi: np.ndarray | float, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """Step and zero point with which the codes of ``scheme`` reach from ``lo`` to ``hi``.

    Asymmetric: s = (hi - lo) / (qmax - qmin), z = round(qmin - lo / s) saturated, as in ONNX DynamicQuantizeLinear.
    Symmetric: z is the middle code. With 8 or more bits s = max(-lo, hi) / (qmax - z): the ends are exact, the lowest
    code is never used, and codes can be negated. Below 8 bits one code is worth 7 to 33 percent of the range, so all
    are used, and s is the smallest step that leaves no x in [lo, hi] further than s / 2 from its code:
    s = max(-lo / (z - qmin + 1/2), hi / (qmax - z + 1/2)). On trained weights this has a quarter (4 bits) to a half
    (2 bits) less squared error than exact ends.

    Args:
        lo, hi: Any equal shape; the range is widened to hold 0, so that 0 has a code of its own.
        scheme: Gives the codes and the symmetry.

    Returns:
        float32 scale (1 where lo = hi = 0; never zero, subnormal or infinite) and int32 zero point, shaped as ``lo``.
    """
    low, high = np.minimum(np.asarray(lo, np.float64), 0), np.maximum(np.asarray(hi, np.float64), 0)
    if scheme.symmetric:
        mid = middle(scheme)
        above, below = scheme.qmax - mid, mid - scheme.qmin
        if scheme.bits >= 8:
            step = np.maximum(-low, high) / above
        else:
            step = np.maximum(-low / (below + 0.5), high / (above + 0.5))
    else:
        step = (high - low) / (scheme.qmax - scheme.qmin)
    largest = float(np.finfo(np.float32).max) / 2.0**scheme.bits  # every dequantized code stays finite
    step = np.where(step == 0, 1.0, np.clip(step, SMALLEST, largest))
    scale = step.astype(np.float32)
    if scheme.symmetric:
        return scale, np.full(scale.shape, mid, np.int32)
    zero = np.rint(scheme.qmin - low / scale)
    return scale, np.clip(zero, scheme.qmin, scheme.qmax).astype(np.int32)
