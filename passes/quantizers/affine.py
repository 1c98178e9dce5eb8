"""Integers on an evenly spaced grid: x = (q - zero_point) * scale, exactly as ONNX QuantizeLinear/DequantizeLinear."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphpress.arrays import array_namespace, is_numpy_array
from graphpress.errors import BadRequest
from graphpress.passes.quantizers import lattice
from graphpress.passes.quantizers.half_quadratic import refined
from graphpress.passes.quantizers.quantizer import Array, QParams, Quantizer, stored
from graphpress.passes.quantizers.row_ranges import extremes, least_error
from graphpress.scale import middle, scale_and_zero
from graphpress.types import Scheme

_TO_THE_NEXT = 0.5 - 2**-6  # of a step: what surely rounds back, in half precision too
_BLOCK = 1 << 16  # elements looked at at a time: they stay in the cache


@dataclass(frozen=True)
class Affine(Quantizer):
    """Evenly spaced codes.

    Observers of weights: ``minmax`` reaches the extremes. ``mse`` shrinks both ends of each channel's or group's range
    by the ratio between 1 and about 0.2 (steps of 0.025 around the best) that leaves the least squared error, ``l4``
    the least fourth power of it, for which large errors count, such as of what is cut off. ``hqq`` goes on from ``mse``
    to scales and zero points that leave few large errors (``half_quadratic``). A weight that lies on an even grid
    already keeps its step wherever the codes suffice, whatever the observer: that loses nothing.
    """

    name: ClassVar[str] = "affine"
    observers: ClassVar[tuple[str, ...]] = ("minmax", "mse", "l4", "hqq")

    def refusal(self, scheme: Scheme) -> str | None:
        if scheme.dtype in ("binary", "ternary"):
            return f"{scheme.dtype} codes are signs: quantizer {scheme.dtype}"
        return f"{scheme.dtype} is not evenly spaced: quantizer float8" if scheme.floating else None

    def fit_rows(self, rows: Array, scheme: Scheme, costs: Array | None, tables: Mapping[str, Array]) -> QParams:
        lo, hi = extremes(rows)
        if scheme.observer != "minmax":
            lo, hi = least_error(rows, lambda part, a, b, c: _error(part, a, b, scheme, c), costs)
        params = from_range(lo, hi, scheme)
        if scheme.observer == "hqq":
            xp = array_namespace(rows)
            scale, zero = refined(rows, params.scale, xp.asarray(_float(params.zero_point)), scheme, costs)
            params = QParams(xp.astype(scale, xp.float32), _in_storage(xp.astype(zero, xp.int32), scheme))
        return _keep_grid(rows, params, scheme)

    def codes(self, x: Array, params: QParams, scheme: Scheme) -> Array:
        """saturate(round(x / scale) + zero_point), halves to even."""
        xp = array_namespace(x)
        steps = xp.round(xp.astype(x, xp.float32) / params.scale)
        shifted = steps + _float(params.zero_point)
        return shifted.clip(scheme.qmin, scheme.qmax)  # the array's own: columns come by the thousand

    def clipped(self, x: Array, params: QParams, scheme: Scheme) -> Array:
        """Beyond the ends by as much as surely rounds back to them."""
        low, high = self.ends(params, x.shape, scheme)
        xp, step = array_namespace(x), self.spread(params, x.shape, scheme).scale
        return xp.clip(x, low - _TO_THE_NEXT * step, high + _TO_THE_NEXT * step)

    def values(self, codes: Array, params: QParams, scheme: Scheme) -> Array:
        """(q - zero_point) * scale."""
        if not is_numpy_array(codes):  # a zero point that is learned is a float
            return (codes - params.zero_point) * params.scale
        return (codes.astype(np.int32) - params.zero_point.astype(np.int32)).astype(np.float32) * params.scale


QUANTIZER = Affine
AFFINE = Affine()


def from_range(lo: Array | float, hi: Array | float, scheme: Scheme) -> QParams:
    """Parameters with which the codes reach from ``lo`` to ``hi``, widened to hold 0; see ``scale_and_zero``.

    Args:
        lo, hi: Any equal shape; the parameters get the same.

    Raises:
        BadRequest: A bound is NaN or infinite.
    """
    if not all(_finite(end) for end in (lo, hi)):
        raise BadRequest("a range of NaN or infinity cannot be quantized", where=str(scheme))
    scale, zero = scale_and_zero(lo, hi, scheme)
    return QParams(scale, _in_storage(zero, scheme))


def _finite(x: Array | float) -> bool:
    if isinstance(x, float | int | np.generic):
        return bool(np.isfinite(x))
    xp = array_namespace(x)
    return bool(xp.all(xp.isfinite(x)))


def _in_storage(zero: Array, scheme: Scheme) -> Array:
    return stored(zero, scheme) if is_numpy_array(zero) else zero


def _float(zero: Array) -> Array:
    xp = array_namespace(zero)
    return xp.astype(zero, xp.float32)


def _keep_grid(rows: Array, params: QParams, scheme: Scheme) -> QParams:
    """The step of the grid that the rows lie on, for those rows whose codes fit the scheme."""
    step = lattice.step(rows)
    if step is None:
        return params
    xp = array_namespace(rows)
    low, high = (xp.astype(xp.round(end / step), xp.int32) for end in extremes(rows))
    if scheme.symmetric:
        zero = xp.zeros_like(low) + middle(scheme)
    else:
        zero = xp.clip(scheme.qmin - low, scheme.qmin, scheme.qmax)
    fits = (low + zero >= scheme.qmin) & (high + zero <= scheme.qmax) & (high > low)
    zeros = _in_storage(xp.where(fits, zero, xp.astype(params.zero_point, xp.int32)), scheme)
    return QParams(xp.where(fits, xp.zeros_like(params.scale) + step, params.scale), zeros)


def _error(rows: Array, lo: Array, hi: Array, scheme: Scheme, costs: Array | None) -> Array:
    """Squared error (times its cost) of quantizing each row with its range, or for ``l4`` the square of that.

    In slices of what fits the cache.
    """
    xp = array_namespace(rows)
    scale, zero = (p[:, None] for p in scale_and_zero(lo, hi, scheme))
    low, high = (end - _float(zero) for end in (scheme.qmin, scheme.qmax))
    total: Any = 0.0
    for i in range(0, max(rows.shape[1], 1), _BLOCK):
        part = rows[:, i : i + _BLOCK]
        off = xp.round(part / scale).clip(low, high)
        off *= scale
        off -= part
        if scheme.observer == "l4":
            off *= off
        total = total + dot(off if costs is None else off * costs[:, i : i + _BLOCK], off)
    return total


def dot(a: Array, b: Array) -> Array:
    """The product of each row of two matrices, [R], in float64."""
    xp = array_namespace(a)
    summed = np.einsum("ij,ij->i", a, b) if is_numpy_array(a) else xp.vecdot(a, b)
    return xp.astype(summed, xp.float64)
