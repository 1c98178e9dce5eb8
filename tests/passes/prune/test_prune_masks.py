"""Masks and methods: against brute force, closed forms, and one another."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphpress.errors import BadRequest
from graphpress.observe.moments import Moments
from graphpress.passes.prune import masks, methods
from graphpress.passes.prune.asked_pattern import checked

RNG = np.random.default_rng


def correlated(width: int, seed: int = 0) -> np.ndarray:
    """Second moments of inputs with a spread spectrum and a few loud channels."""
    rng = RNG(seed)
    x = rng.normal(size=(1024, width)) * np.logspace(0, -1.5, width) @ np.linalg.qr(rng.normal(size=(width, width)))[0]
    x[:, :4] *= 6
    return x.T @ x / len(x)


@given(hnp.arrays(np.float32, (3, 12), elements=st.floats(-9, 9, width=32)), st.sampled_from([(1, 4), (2, 4), (3, 6)]))
def test_a_mask_keeps_the_best_of_all_patterns(score: np.ndarray, pattern: tuple[int, int]) -> None:
    n, m = pattern
    found = masks.mask(score, n, m)
    assert (found.reshape(-1, m).sum(1) == n).all()
    for group, kept in zip(score.reshape(-1, m), found.reshape(-1, m), strict=True):
        best = max(sum(group[list(c)].astype(float)) for c in itertools.combinations(range(m), n))
        assert group[kept].astype(float).sum() == pytest.approx(best, abs=1e-4)


def test_of_equals_the_first_are_kept() -> None:
    np.testing.assert_array_equal(masks.mask(np.ones((1, 4)), 2, 4), [[True, True, False, False]])


def test_a_convolution_is_pruned_along_input_channels_at_each_place() -> None:
    w = RNG(0).normal(size=(3, 8, 3, 2)).astype(np.float32)
    new = methods.pruned(w, 2, 4, "magnitude")
    for o, i, j in itertools.product(range(3), range(3), range(2)):
        np.testing.assert_array_equal(
            new[o, :, i, j], np.where(masks.mask(np.abs(w[o, :, i, j]), 2, 4), w[o, :, i, j], 0)
        )
    np.testing.assert_array_equal(masks.columns_back(masks.columns_last(w), w.shape), w)


def test_equal_norms_make_wanda_magnitude() -> None:
    w, h = RNG(1).normal(size=(16, 32)), correlated(32)
    flat = h / np.sqrt(np.outer(np.diag(h), np.diag(h)))
    np.testing.assert_array_equal(methods.wanda(w, flat, 2, 4), methods.pruned(w, 2, 4, "magnitude"))


def test_wanda_keeps_the_small_weight_of_a_loud_input() -> None:
    w, h = np.array([[1.0, 0.9, 0.5, 0.1]]), np.diag([1.0, 1.0, 1.0, 1e4])
    np.testing.assert_array_equal(methods.wanda(w, h, 2, 4), [[1.0, 0, 0, 0.1]])


def test_dead_inputs_are_pruned_by_magnitude() -> None:
    w = np.array([[1.0, 3.0, 2.0, 0.5]])
    np.testing.assert_array_equal(methods.wanda(w, np.zeros((4, 4)), 2, 4), [[0, 3.0, 2.0, 0]])


def test_white_inputs_make_sparsegpt_magnitude() -> None:
    w = RNG(2).normal(size=(16, 64))
    found = methods.sparsegpt(w, np.eye(64) * 3, 2, 4, 0.01)
    np.testing.assert_allclose(found, methods.pruned(w, 2, 4, "magnitude"), atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_on_correlated_inputs_sparsegpt_loses_less_than_wanda(seed: int) -> None:
    w, moments = RNG(seed).normal(size=(96, 128)), Moments(correlated(128, seed)[None], 1024)
    lost = {m: moments.error(methods.pruned(w, 2, 4, m, moments) - w) for m in ("wanda", "sparsegpt")}
    assert lost["sparsegpt"] < 0.8 * lost["wanda"]  # 0.63 is usual


def test_sparsegpt_chooses_from_weights_as_they_have_become() -> None:
    """Two inputs that are nearly one: the second takes over the first's work before its own group is chosen."""
    h = np.eye(8)
    h[3, 4] = h[4, 3] = 0.999
    w = np.array([[9.0, 8.0, 0.0, 3.0, 0.5, 2.0, 2.0, 0.1]])
    found = methods.sparsegpt(w, h, 2, 4, 1e-6)
    assert found[0, 4] != 0 and methods.pruned(w, 2, 4, "magnitude")[0, 4] == 0
    assert found[0, 4] == pytest.approx(3.5, abs=0.02)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_groups_and_kernels_of_a_convolution_use_their_own_moments(method: str) -> None:
    w = RNG(3).normal(size=(6, 4, 2, 2))  # two groups
    h = np.stack([correlated(16, 1), correlated(16, 2)])
    new = methods.pruned(w, 2, 4, method, Moments(h, 1))
    assert (np.count_nonzero(np.moveaxis(new, 1, -1).reshape(-1, 4), axis=1) == 2).all()
    alone = methods.pruned(w[3:], 2, 4, method, Moments(h[1:], 1))
    np.testing.assert_allclose(new[3:], alone)
    order = np.arange(16).reshape(4, 2, 2).transpose(1, 2, 0).ravel()  # the columns of one place side by side
    rows = w[3:].reshape(3, 16)[:, order]
    plain = methods.wanda if method == "wanda" else lambda r, g, n, m: methods.sparsegpt(r, g, n, m, 0.01)
    np.testing.assert_allclose(alone.reshape(3, 16)[:, order], plain(rows, h[1][np.ix_(order, order)], 2, 4))


@pytest.mark.parametrize(("n", "m", "word"), [(4, 4, "every"), (5, 4, "every"), (0, 4, "nothing"), (2, 64, "large")])
def test_impossible_patterns_are_refused(n: int, m: int, word: str) -> None:
    with pytest.raises(BadRequest, match=word):
        checked(n, m, "prune")
