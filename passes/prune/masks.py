"""n:m masks: the n best of each m neighbours along the reduction axis. No graph."""

from __future__ import annotations

import numpy as np


def mask(score: np.ndarray, n: int, m: int) -> np.ndarray:
    """The n largest scores of each m neighbours along the last axis; of equal ones the first.

    Args:
        score: [..., K], K a multiple of m.

    Returns:
        Booleans of the same shape, exactly n of each m True.
    """
    groups = score.reshape(-1, m)
    order = np.argsort(-groups, axis=1, kind="stable")
    kept = np.zeros(groups.shape, bool)
    np.put_along_axis(kept, order[:, :n], True, axis=1)
    return kept.reshape(score.shape)


def kept(score: np.ndarray, n: int, m: int) -> float:
    """The sum of what ``mask`` keeps of non-negative scores [..., K]."""
    groups = score.reshape(-1, m)
    return float(np.partition(groups, m - n, axis=1)[:, m - n :].sum(dtype=np.float64))


def columns_last(weight: np.ndarray) -> np.ndarray:
    """[out, in, *kernel] as the matrix [out * prod(kernel), in] whose rows are pruned each on its own."""
    return np.moveaxis(weight, 1, -1).reshape(-1, weight.shape[1])


def columns_back(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of ``columns_last`` for a weight of this shape."""
    return np.moveaxis(matrix.reshape(shape[0], *shape[2:], shape[1]), -1, 1)
