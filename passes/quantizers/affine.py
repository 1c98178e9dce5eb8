"""Integers on an evenly spaced grid: x = (q - zero_point) * scale, exactly as ONNX QuantizeLinear/DequantizeLinear."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from graphpress.errors import BadRequest, nearest
from graphpress.passes.quantizers import lattice
from graphpress.scale import middle, scale_and_zero
from graphpress.types import Kind, Scheme

_COARSE = np.linspace(1, 0.2, 9)  # how far a weight's range may shrink
_FINE = np.array([-0.075, -0.05, -0.025, 0.025, 0.05, 0.075])  # around the best of those
_BLOCK = 1 << 16  # elements searched at a time: they stay in the cache


@dataclass(frozen=True, eq=False)
class QParams:
    """Scale (float32, positive, normal) and zero point (storage type), shaped as ONNX wants them.

    per_tensor: scalars. per_channel: [channels]. per_group: the tensor's shape with its axis divided by the group
    size, rounded up.
    """

    scale: np.ndarray
    zero_point: np.ndarray


def from_range(lo: np.ndarray | float, hi: np.ndarray | float, scheme: Scheme) -> QParams:
    """Parameters with which the codes reach from ``lo`` to ``hi``, widened to hold 0; see ``scale_and_zero``.

    Args:
        lo, hi: Any equal shape; the parameters get the same.

    Raises:
        BadRequest: A bound is NaN or infinite.
    """
    if not (np.isfinite(lo).all() and np.isfinite(hi).all()):
        raise BadRequest("a range of NaN or infinity cannot be quantized", where=str(scheme))
    scale, zero = scale_and_zero(lo, hi, scheme)
    return QParams(scale, zero.astype(np.int32).astype(_storage(scheme)))


def fit(weight: np.ndarray, scheme: Scheme, importance: np.ndarray | None = None) -> QParams:
    """Parameters for a constant tensor.

    ``minmax`` reaches its extremes. ``mse`` shrinks both ends of each channel's or group's range by the ratio between
    1 and about 0.2 (steps of 0.025 around the best) that leaves the least squared error. A weight that lies on an even
    grid already keeps its step wherever the codes suffice, whatever the observer: that loses nothing.

    Args:
        weight: Any shape and floating type.
        importance: What a squared error of each element costs, for ``mse``: positive, broadcasts to ``weight``.

    Raises:
        BadRequest: NaN or infinity in the weight, an observer that is not for weights, an axis the weight lacks.
    """
    ranges = {"minmax": _extremes, "mse": _least_error}
    if scheme.observer not in ranges:
        raise BadRequest(
            f"{scheme.observer!r} is not for weights", where="observer", fix=nearest(scheme.observer, ranges)
        )
    groups = _groups(np.asarray(weight, np.float32), scheme)
    rows = groups.reshape(math.prod(groups.shape[:-1]), groups.shape[-1])
    if not np.isfinite(rows).all():
        raise BadRequest("the weight holds NaN or infinity", where=str(scheme), fix="Repair the model.")
    costs = None
    if importance is not None:
        costs = _groups(np.broadcast_to(np.asarray(importance, np.float32), np.shape(weight)), scheme).reshape(
            rows.shape
        )
    params = _keep_grid(rows, from_range(*ranges[scheme.observer](rows, scheme, costs), scheme), scheme)
    return QParams(_arrange(params.scale, groups, scheme), _arrange(params.zero_point, groups, scheme))


def quantize(x: np.ndarray, qparams: QParams, scheme: Scheme) -> np.ndarray:
    """saturate(round(x / scale) + zero_point), halves to even; shaped as ``x``, of the storage type."""
    scale, zero = _spread(qparams.scale, x, scheme), _spread(qparams.zero_point, x, scheme).astype(np.float32)
    codes = np.clip(np.rint(np.divide(x, scale, dtype=np.float32)) + zero, scheme.qmin, scheme.qmax)
    wide = codes.astype(np.int32 if scheme.bits > 8 else np.int16)  # 4-bit types take integers only
    return wide.astype(_storage(scheme))


def dequantize(q: np.ndarray, qparams: QParams, scheme: Scheme) -> np.ndarray:
    """(q - zero_point) * scale in float32; shaped as ``q``."""
    scale, zero = _spread(qparams.scale, q, scheme), _spread(qparams.zero_point, q, scheme)
    result: np.ndarray = (q.astype(np.int32) - zero.astype(np.int32)).astype(np.float32) * scale
    return result


def _storage(scheme: Scheme) -> np.dtype:
    return scheme.ir_dtype.numpy()


def _axis(x: np.ndarray, scheme: Scheme) -> int:
    axis = scheme.granularity.axis
    if scheme.granularity.kind is Kind.TOKEN or axis is None:
        raise BadRequest(f"{scheme.granularity} scales are computed at run time", where="granularity")
    if not -x.ndim <= axis < x.ndim:
        raise BadRequest(f"axis {axis} of a tensor of shape {x.shape}", where="granularity")
    return axis % x.ndim


def _groups(x: np.ndarray, scheme: Scheme) -> np.ndarray:
    """The elements that share a scale along the last axis; a short last group is filled up with zeros."""
    kind, size = scheme.granularity.kind, scheme.granularity.group_size
    if kind is Kind.TENSOR:
        return x.reshape(1, -1)
    axis = _axis(x, scheme)
    if size is None:
        return np.moveaxis(x, axis, 0).reshape(x.shape[axis], x.size // max(x.shape[axis], 1))
    last = np.moveaxis(x, axis, -1)
    fill = -last.shape[-1] % size
    if fill:
        last = np.pad(last, [(0, 0)] * (x.ndim - 1) + [(0, fill)])
    return last.reshape(*last.shape[:-1], -1, size)


def _arrange(parameter: np.ndarray, groups: np.ndarray, scheme: Scheme) -> np.ndarray:
    """One parameter for each row of ``groups``, as ONNX wants it."""
    kind, axis = scheme.granularity.kind, scheme.granularity.axis
    if kind is Kind.TENSOR:
        return parameter.reshape(())
    if kind is Kind.CHANNEL:
        return parameter
    assert axis is not None
    return np.ascontiguousarray(np.moveaxis(parameter.reshape(groups.shape[:-1]), -1, axis))


def _spread(parameter: np.ndarray, x: np.ndarray, scheme: Scheme) -> np.ndarray:
    """The parameter in a shape that broadcasts against ``x``."""
    kind, size = scheme.granularity.kind, scheme.granularity.group_size
    if kind is Kind.TENSOR:
        return parameter.reshape(())
    axis = _axis(x, scheme)
    if size is None:
        return parameter.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return np.repeat(parameter, size, axis=axis)[(slice(None),) * axis + (slice(x.shape[axis]),)]


def _extremes(rows: np.ndarray, scheme: Scheme, costs: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    return rows.min(axis=1, initial=0), rows.max(axis=1, initial=0)


def _least_error(rows: np.ndarray, scheme: Scheme, costs: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    count = max(1, _BLOCK // max(rows.shape[1], 1))
    parts = [slice(i, i + count) for i in range(0, len(rows), count)]
    found = [_shrink(rows[p], scheme, None if costs is None else costs[p]) for p in parts]
    lo, hi = zip(*found, strict=True) if found else ([np.zeros(0)], [np.zeros(0)])
    return np.concatenate(lo), np.concatenate(hi)


def _shrink(rows: np.ndarray, scheme: Scheme, costs: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    lo, hi = _extremes(rows, scheme)
    best, least = np.ones(len(rows), np.float32), _error(rows, lo, hi, scheme, costs)
    for base, steps in ((0.0, _COARSE[1:]), (1.0, _FINE)):
        center = base * best
        for step in steps:
            ratio = center + np.float32(step)
            error = np.where(ratio <= 1, _error(rows, lo * ratio, hi * ratio, scheme, costs), np.inf)
            best, least = np.where(error < least, ratio, best), np.minimum(error, least)
    return lo * best, hi * best


def _keep_grid(rows: np.ndarray, params: QParams, scheme: Scheme) -> QParams:
    """The step of the grid that the rows lie on, for those rows whose codes fit the scheme."""
    step = lattice.step(rows)
    if step is None:
        return params
    low, high = (np.rint(end / step).astype(np.int32) for end in _extremes(rows, scheme))
    if scheme.symmetric:
        zero = np.full(low.shape, middle(scheme), np.int32)
    else:
        zero = np.clip(scheme.qmin - low, scheme.qmin, scheme.qmax)
    fits = (low + zero >= scheme.qmin) & (high + zero <= scheme.qmax) & (high > low)
    zeros = np.where(fits, zero, params.zero_point.astype(np.int32)).astype(_storage(scheme))
    return QParams(np.where(fits, np.float32(step), params.scale), zeros)


def _error(
    rows: np.ndarray, lo: np.ndarray, hi: np.ndarray, scheme: Scheme, costs: np.ndarray | None = None
) -> np.ndarray:
    """Squared error (times its cost) of quantizing each row with its range, in slices of what fits the cache."""
    scale, zero = (p[:, None] for p in scale_and_zero(lo, hi, scheme))
    low, high = (np.float32(end) - zero.astype(np.float32) for end in (scheme.qmin, scheme.qmax))
    total = np.zeros(len(rows))
    for i in range(0, rows.shape[1], _BLOCK):
        part = rows[:, i : i + _BLOCK]
        codes = part / scale
        np.rint(codes, out=codes)
        np.clip(codes, low, high, out=codes)
        codes *= scale
        codes -= part
        weighted = codes if costs is None else codes * costs[:, i : i + _BLOCK]
        total += np.einsum("ij,ij->i", weighted, codes)
    return total
