"""What is kept of a weight: by magnitude, by Wanda's score, or by SparseGPT, which also moves what is left. No graph.

Weights are [out, in / groups, *kernel]; the second moments of a layer's inputs are [groups, K, K] over the unfolded
columns, input channel first. Masks want the columns of one place of the kernel side by side, so the order is changed on
the way in and back on the way out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from graphpress.observe.moments import Moments
from graphpress.passes.prune import masks
from graphpress.passes.quantizers import obs


def pruned(
    weight: np.ndarray, n: int, m: int, method: str, moments: Moments | None = None, damping: float = 0.01
) -> np.ndarray:
    """The weight with n of each m neighbouring input channels kept, of its own shape and type."""
    if moments is None:
        rows = masks.columns_last(weight)
        new = np.where(masks.mask(np.abs(rows).astype(np.float32), n, m), rows, 0)
        return masks.columns_back(new, weight.shape).astype(weight.dtype)
    parts = np.split(weight, len(moments.matrix))
    made = [_part(p, h, n, m, method, damping) for p, h in zip(parts, moments.matrix, strict=True)]
    return np.concatenate(made).astype(weight.dtype)


def _part(weight: np.ndarray, hessian: np.ndarray, n: int, m: int, method: str, damping: float) -> np.ndarray:
    """One group of a convolution, or a whole layer."""
    shape = weight.shape
    channels_last = np.moveaxis(np.arange(math.prod(shape[1:])).reshape(shape[1:]), 0, -1).ravel()
    rows = weight.reshape(shape[0], -1).astype(np.float64)[:, channels_last]
    seen = hessian[np.ix_(channels_last, channels_last)]
    new = wanda(rows, seen, n, m) if method == "wanda" else sparsegpt(rows, seen, n, m, damping)
    back = np.empty_like(new)
    back[:, channels_last] = new
    return back.reshape(shape)


def wanda(rows: np.ndarray, hessian: np.ndarray, n: int, m: int) -> np.ndarray:
    """Keep the largest |w| times the norm of its input; [out, K]."""
    score = np.abs(rows) * np.sqrt(np.diagonal(hessian))
    # Where inputs are dead all scores are 0: magnitude decides, below every score.
    score = np.where(score == 0, -np.exp(-np.abs(rows)), score)
    return np.where(masks.mask(score, n, m), rows, 0)


def sparsegpt(rows: np.ndarray, hessian: np.ndarray, n: int, m: int, damping: float) -> np.ndarray:
    """Column by column: of every m the n that cost most to lose stay; later columns take up what is lost; [out, K]."""
    block = 128 // m * m
    return obs.solve(rows, hessian, _Chooser(n, m), damping=damping, block=block)


@dataclass
class _Chooser:
    """Chooses at every m-th column, from weights as they have become by then."""

    n: int
    m: int
    kept: np.ndarray | None = None

    @property
    def step(self) -> int:
        return self.m

    def enter(self, columns: np.ndarray, start: int, diagonal: np.ndarray) -> None:
        self.kept = masks.mask((columns[:, : self.m] / diagonal[: self.m]) ** 2, self.n, self.m)

    def __call__(self, column: np.ndarray, j: int) -> np.ndarray:
        assert self.kept is not None
        return np.where(self.kept[:, j % self.m], column, 0.0)
