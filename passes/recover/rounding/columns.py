"""Rounding one layer to its grid with the column recursion of GPTQ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from graphpress.observe.moments import Moments
from graphpress.passes.quantizers import obs
from graphpress.passes.quantizers.affine import AFFINE
from graphpress.passes.quantizers.quantizer import QParams
from graphpress.passes.recover.rounding.grids import Quantized
from graphpress.types import Scheme, per_channel


def round_layer(
    q: Quantized, moments: Moments, *, damping: float, block: int, act_order: bool, observer: str
) -> tuple[np.ndarray, QParams]:
    """The weight on a grid, float32 [out, K], and the grid.

    Args:
        q: Not changed.
        moments: Of what it reads.
        damping, block: See ``obs.solve``.
        act_order: Columns by falling energy; scales of groups are then fixed beforehand.
        observer: ``keep``, ``minmax``, ``mse`` or ``loss`` (see ``Gptq``).

    Raises:
        BadRequest: The Hessian is not positive definite.
    """
    weight, groups = q.weight(), moments.matrix.shape[0]
    factors = [obs.factor(h, damping) for h in moments.matrix]
    scale, zero = q.spread(_grid(q, weight, factors, observer))
    size = 0 if act_order or observer == "keep" else q.group
    if size:
        block = -(-block // size) * size
    result = np.empty_like(weight)
    for part, hessian in zip(_parts(len(weight), groups), moments.matrix, strict=True):
        order = obs.by_importance(hessian) if act_order else np.arange(weight.shape[1])
        project = _Rounding(q, weight[part], scale[part], zero[part], order, size, observer)
        result[part] = obs.solve(weight[part], hessian, project, damping=damping, block=block, order=order)
    return result, q.gathered(scale, zero)


def _parts(rows: int, groups: int) -> Iterator[slice]:
    each = rows // groups
    return (slice(i * each, (i + 1) * each) for i in range(groups))


def _grid(q: Quantized, weight: np.ndarray, factors: list[np.ndarray], observer: str) -> QParams:
    """The grid that the rounding begins with."""
    if observer == "keep":
        return q.params()
    costs = None
    if observer == "loss":
        each = np.stack([1 / np.square(u.diagonal()) for u in factors])
        costs = q.stored(np.repeat(each / each.mean(), len(weight) // len(factors), axis=0).astype(np.float32))
    return q.cast(AFFINE.fit(q.stored(weight), _scheme(q.scheme, observer), costs))


def _scheme(scheme: Scheme, observer: str) -> Scheme:
    return replace(scheme, observer="mse" if observer == "loss" else observer)


class _Rounding:
    """Rounds columns of [O, K] to the nearest code; finds the scale of a group when its first column is reached."""

    def __init__(
        self, q: Quantized, weight: np.ndarray, scale: np.ndarray, zero: np.ndarray, order: np.ndarray, size: int,
        observer: str,
    ) -> None:  # fmt: skip
        self.q, self.order, self.size, self.observer = q, order, size, observer
        self.scale, self.zero = scale, zero  # written to: views of the layer's
        self.kept = weight != 0 if q.pruned else None

    def enter(self, columns: np.ndarray, start: int, diagonal: np.ndarray) -> None:
        if not self.size or start % self.size:
            return
        scheme = replace(_scheme(self.q.scheme, self.observer), granularity=per_channel(0))
        costs = 1 / np.square(diagonal[: self.size]) if self.observer == "loss" else None
        costs = None if costs is None else costs / costs.mean()
        found = self.q.cast(AFFINE.fit(columns[:, : self.size], scheme, costs))
        here = slice(start, start + self.size)
        self.scale[:, here] = found.scale[:, None]
        self.zero[:, here] = found.zero_point.astype(np.int32)[:, None]

    def __call__(self, column: np.ndarray, j: int) -> np.ndarray:
        c, scheme = self.order[j], self.q.scheme
        scale, zero = self.scale[:, c], self.zero[:, c].astype(np.float32)
        codes = np.clip(np.rint(column.astype(np.float32) / scale) + zero, scheme.qmin, scheme.qmax)
        settled = (codes - zero) * scale
        return settled if self.kept is None else np.where(self.kept[:, c], settled, np.float32(0))
