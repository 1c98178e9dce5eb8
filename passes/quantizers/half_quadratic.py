"""Scales and zero points that leave few large errors (HQQ, half-quadratic quantization; mobiusml.github.io/hqq_blog).

``sum |w - w^|^p`` with p = 0.7 is not convex; with an auxiliary e that stands for the error it falls apart in turns:
``e <- shrink(w - w^)``, then scale and zero point as least squares of ``w - e``, while beta, which ties e to the error,
grows. Errors are counted in steps, so that nothing depends on the size of the weights. No data is needed.
"""

from __future__ import annotations

from graphpress.arrays import array_namespace
from graphpress.passes.quantizers.quantizer import Array
from graphpress.types import Scheme

_NORM = 0.7
_BETA, _GROWTH, _TURNS = 10.0, 1.01, 20


def refined(rows: Array, scale: Array, zero: Array, scheme: Scheme, costs: Array | None = None) -> tuple[Array, Array]:
    """(scale, whole zero point) of each row, as good as or better than those given.

    Args:
        rows: float32 [R, n].
        scale, zero: To begin with, [R].
        scheme: Gives the codes and the symmetry.
        costs: What an error of each element counts, [R, n], or None.
    """
    xp = array_namespace(rows)
    s, z = scale[:, None], xp.astype(zero[:, None], xp.float32)
    weights, beta = xp.ones_like(rows) if costs is None else costs, _BETA
    best_s, best_z, least = s, z, _lost(rows, s, z, scheme, weights)
    for _ in range(_TURNS):
        codes = xp.clip(xp.round(rows / s + z), scheme.qmin, scheme.qmax)
        wanted = rows - s * shrunk(rows / s - (codes - z), beta)
        if not scheme.symmetric:
            off = xp.sum(weights * (codes - wanted / s), axis=1, keepdims=True)
            z = xp.clip(off / xp.sum(weights, axis=1, keepdims=True), scheme.qmin, scheme.qmax)
        whole = xp.round(z)
        s = _scale(wanted, codes - whole, weights, s)
        lost = _lost(rows, s, whole, scheme, weights)
        better = lost < least
        best_s, best_z = xp.where(better, s, best_s), xp.where(better, whole, best_z)
        least, beta = xp.where(better, lost, least), beta * _GROWTH
    return best_s[:, 0], xp.astype(best_z[:, 0], zero.dtype)


def shrunk(off: Array, beta: float) -> Array:
    """sign(x) max(|x| - |x|^(p-1) / beta, 0): what of an error is taken for one that may stay."""
    xp = array_namespace(off)
    size = xp.abs(off)
    return xp.sign(off) * xp.clip(size - xp.clip(size, min=1e-12) ** (_NORM - 1) / beta, min=0.0)


def _scale(wanted: Array, steps: Array, weights: Array, before: Array) -> Array:
    """Least squares; where all codes are 0 it stays, and it never falls below a hundredth of what it was."""
    xp = array_namespace(wanted)
    power = xp.sum(weights * steps * steps, axis=1, keepdims=True)
    found = xp.sum(weights * wanted * steps, axis=1, keepdims=True) / xp.where(power > 0, power, xp.ones_like(power))
    return xp.where(power > 0, xp.maximum(found, before * 0.01), before)


def _lost(rows: Array, scale: Array, zero: Array, scheme: Scheme, weights: Array) -> Array:
    xp = array_namespace(rows)
    codes = xp.clip(xp.round(rows / scale) + zero, scheme.qmin, scheme.qmax)
    return xp.sum(weights * xp.abs(rows - (codes - zero) * scale) ** _NORM, axis=1, keepdims=True)
