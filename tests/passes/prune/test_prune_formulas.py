"""The scores and the column recursion of pruning, each against a formula written out here."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphpress.observe.moments import Moments
from graphpress.passes.prune import masks, methods

RNG = np.random.default_rng


def correlated(width: int, seed: int) -> np.ndarray:
    x = RNG(seed).normal(size=(4 * width, width)) @ RNG(seed + 1).normal(size=(width, width))
    return x.T @ x / len(x)


def left_to_right(w: np.ndarray, h: np.ndarray, n: int, m: int, damping: float) -> np.ndarray:
    """SparseGPT without a Cholesky factor: inverses of what is left, and least squares with the settled columns held.

    Losing column c costs w_c^2 / [H_left^-1]_cc, H_left the moments of the columns from c on.
    """
    size = len(h)
    damped = h + damping * np.trace(h) / size * np.eye(size)
    now, kept = w.copy(), np.zeros(w.shape, bool)
    for j in range(size):
        if j % m == 0:
            cost = np.stack([now[:, c] ** 2 / np.linalg.inv(damped[c:, c:])[0, 0] for c in range(j, j + m)], 1)
            for row, order in enumerate(np.argsort(-cost, axis=1)):
                kept[row, j + order[:n]] = True
        now[:, j] = np.where(kept[:, j], now[:, j], 0)
        done, rest = np.arange(j + 1), np.arange(j + 1, size)
        lost = now[:, done] - w[:, done]
        now[:, rest] = w[:, rest] - lost @ damped[np.ix_(done, rest)] @ np.linalg.inv(damped[np.ix_(rest, rest)])
    return now


@pytest.mark.parametrize(("n", "m", "size"), [(2, 4, 12), (3, 6, 132), (1, 4, 8)])
def test_sparsegpt_is_the_recursion_written_out(n: int, m: int, size: int) -> None:
    w, h = RNG(n).normal(size=(5, size)), correlated(size, m)
    found = methods.sparsegpt(w, h, n, m, 0.01)
    np.testing.assert_allclose(found, left_to_right(w, h, n, m, 0.01), atol=1e-8)


def test_where_inputs_do_not_go_together_sparsegpt_keeps_what_costs_most() -> None:
    """A diagonal H: the cost of a weight is w^2 H_jj, whatever its sign and whatever the scale of H."""
    w, h = np.array([[1.0, -0.9, 0.5, -0.1], [-0.2, 3.0, -4.0, 0.01]]), np.diag([1.0, 1.0, 1.0, 1e4])
    expected = [[1.0, 0, 0, -0.1], [0, 3.0, -4.0, 0]]
    for scale in (1.0, 1e-3):
        np.testing.assert_allclose(methods.sparsegpt(w, h * scale, 2, 4, 1e-9), expected, atol=1e-12)


def test_the_damping_is_one_percent_unless_another_is_asked_for() -> None:
    w, moments = RNG(0).normal(size=(4, 8)), Moments(correlated(8, 3)[None], 32)
    found = methods.pruned(w, 2, 4, "sparsegpt", moments)
    np.testing.assert_allclose(found, left_to_right(w, moments.matrix[0], 2, 4, 0.01), atol=1e-8)


def test_wanda_scores_by_magnitude_times_norm() -> None:
    w, h = RNG(5).normal(size=(6, 12)), correlated(12, 7)
    score = np.abs(w) * np.sqrt(np.diag(h))
    found = methods.wanda(w, h, 2, 4) != 0
    for row, kept in zip(score.reshape(-1, 4), found.reshape(-1, 4), strict=True):
        assert set(np.flatnonzero(kept)) == set(np.argsort(row)[2:])
    dead = np.where(np.arange(12) < 4, 0.0, np.diag(h))
    found = methods.wanda(w, np.diag(dead), 2, 4)
    for row, kept in zip(np.abs(w[:, :4]), found[:, :4] != 0, strict=True):  # all scores 0: magnitude
        assert set(np.flatnonzero(kept)) == set(np.argsort(row)[2:])
    np.testing.assert_array_equal(found[:, 4:] != 0, methods.wanda(w, h, 2, 4)[:, 4:] != 0)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_shape_and_type_stay(method: str) -> None:
    w = RNG(1).normal(size=(4, 8, 3, 1)).astype(np.float16)
    moments = None if method == "magnitude" else Moments(correlated(24, 2)[None], 1)
    new = methods.pruned(w, 2, 4, method, moments)
    assert (new.dtype, new.shape) == (w.dtype, w.shape)
    assert (np.count_nonzero(np.moveaxis(new, 1, -1).reshape(-1, 4), axis=1) == 2).all()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 6), (1, 2)])
def test_what_a_mask_keeps_is_the_best_sum_of_each_group(n: int, m: int) -> None:
    score = np.abs(RNG(m).normal(size=(5, 12)))
    groups = score.reshape(-1, m)
    best = sum(max(sum(g[list(c)]) for c in itertools.combinations(range(m), n)) for g in groups)
    assert masks.kept(score, n, m) == pytest.approx(best, rel=1e-12)
    assert score[masks.mask(score, n, m)].sum() == pytest.approx(best, rel=1e-12)


def test_a_mask_of_negative_scores_keeps_the_largest_and_of_equals_the_first() -> None:
    score = np.array([[-1.0, -4.0, -2.0, -3.0, 5.0, 5.0, 5.0, 5.0]])
    np.testing.assert_array_equal(masks.mask(score, 1, 4), [[1, 0, 0, 0, 1, 0, 0, 0]])
    np.testing.assert_array_equal(masks.mask(score, 3, 4), [[1, 0, 1, 1, 1, 1, 1, 0]])


def test_the_columns_of_a_kernel_lie_by_input_channel() -> None:
    w = np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    rows = masks.columns_last(w)
    assert rows.shape == (8, 3)
    np.testing.assert_array_equal(rows[1 * 4 + 1 * 2 + 0], w[1, :, 1, 0])
    np.testing.assert_array_equal(masks.columns_back(rows, w.shape), w)
