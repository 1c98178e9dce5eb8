"""The column recursion of GPTQ and SparseGPT against brute force, and against what rounding to nearest leaves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphpress.errors import BadRequest
from graphpress.passes.quantizers import obs


class Nearest:
    """Rounds each row to its own grid of ``bits`` bits, fixed before the recursion."""

    step = 1

    def __init__(self, weight: np.ndarray, bits: int) -> None:
        self.high = 2 ** (bits - 1) - 1
        self.scale = np.abs(weight).max(axis=1) / (self.high + 0.5)
        self.seen: list[tuple[int, np.ndarray, np.ndarray]] = []

    def enter(self, columns: np.ndarray, start: int, diagonal: np.ndarray) -> None:
        self.seen.append((start, columns.copy(), diagonal.copy()))

    def __call__(self, column: np.ndarray, j: int) -> np.ndarray:
        return np.clip(np.rint(column / self.scale), -self.high - 1, self.high) * self.scale

    def all(self, weight: np.ndarray) -> np.ndarray:
        return np.stack([self(c, j) for j, c in enumerate(weight.T)], axis=1)


def lin(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """1024 correlated inputs of 128 channels (log-spaced spectrum, four loud channels), and a weight [96, 128]."""
    rng = np.random.default_rng(seed)
    mixing, _ = np.linalg.qr(rng.normal(size=(128, 128)))
    x = rng.normal(size=(1024, 128)) * np.logspace(0, -1.5, 128) @ mixing
    x[:, rng.choice(128, 4, replace=False)] *= 6
    return x, rng.normal(size=(96, 128)) / np.sqrt(128)


def small(rows: int = 6, columns: int = 24, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, columns)) @ rng.normal(size=(columns, columns))
    return rng.normal(size=(rows, columns)), x.T @ x / len(x)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_fifth_less_error_than_rounding_on_correlated_inputs(bits: int, seed: int) -> None:
    x, w = lin(seed)
    project = Nearest(w, bits)
    found = project.all(w), obs.solve(w, x.T @ x, project)
    plain, solved = (np.square(x @ (q - w).T).sum() for q in found)
    assert solved <= 0.8 * plain


@pytest.mark.parametrize("block", [1, 5, 8, 100])
def test_blocks_change_nothing(block: int) -> None:
    w, h = small()
    whole, blocked = (obs.solve(w, h, Nearest(w, 3), block=b) for b in (24, block))
    np.testing.assert_allclose(blocked, whole, atol=1e-5 * np.abs(w).max())


def test_a_diagonal_hessian_is_rounding_to_nearest_bit_for_bit() -> None:
    w, _ = small()
    project = Nearest(w, 3)
    np.testing.assert_array_equal(obs.solve(w, np.diag(np.arange(1.0, 25)), project), project.all(w))


@pytest.mark.parametrize("order", [None, "importance"])
def test_the_recursion_is_repeated_least_squares(order: str | None) -> None:
    """After each column, what is left is the weight that minimises the error with the settled columns held."""
    w, h = small(columns=10)
    chosen = np.arange(10) if order is None else obs.by_importance(h)
    damped = h + 0.01 * h.diagonal().mean() * np.eye(10)
    expected, project = w.copy(), Nearest(w, 3)
    for i, j in enumerate(chosen):
        done, rest = chosen[: i + 1], chosen[i + 1 :]
        expected[:, j] = project(expected[:, j], 0)
        lost = expected[:, done] - w[:, done]
        expected[:, rest] = w[:, rest] - lost @ damped[np.ix_(done, rest)] @ np.linalg.inv(damped[np.ix_(rest, rest)])
    np.testing.assert_allclose(obs.solve(w, h, Nearest(w, 3), order=chosen), expected, atol=1e-9)


def test_the_projection_sees_each_column_as_it_stands_and_what_settling_it_costs() -> None:
    w, h = small(columns=10)
    project = Nearest(w, 3)
    obs.solve(w, h, project, block=4)
    assert [s for s, _, _ in project.seen] == list(range(10))
    assert [c.shape[1] for _, c, _ in project.seen] == [4, 3, 2, 1, 4, 3, 2, 1, 2, 1]
    np.testing.assert_array_equal(project.seen[0][1], w[:, :4])
    assert not np.allclose(project.seen[4][1], w[:, 4:8])  # updated by the block before
    for start, _, diagonal in project.seen:  # U_jj^2 is the last pivot: 1 / (inverse of what is left)_jj
        rest = h[start:, start:] + 0.01 * h.diagonal().mean() * np.eye(10 - start)
        np.testing.assert_allclose(diagonal[0] ** 2, np.linalg.inv(rest)[0, 0], rtol=1e-9)


def test_a_dead_input_is_settled_by_itself() -> None:
    w, h = small(columns=10)
    h[3] = 0
    h[:, 3] = 0
    alive = np.delete(np.arange(10), 3)
    project = Nearest(w, 3)
    solved = obs.solve(w, h, project)
    np.testing.assert_array_equal(solved[:, 3], project(w[:, 3], 3))
    without = obs.solve(w[:, alive], h[np.ix_(alive, alive)], project)
    np.testing.assert_allclose(solved[:, alive], without, atol=1e-12)


def test_an_input_whose_energy_is_lost_to_underflow_neither_gives_nor_takes() -> None:
    """Its square is 0, its products with others are not: no positive semidefinite matrix any more."""
    _, h = small(columns=10)
    faint = h.copy()
    h[3] = h[:, 3] = 0
    faint[3, 3] = 0
    np.testing.assert_array_equal(obs.factor(faint, 0.01), obs.factor(h, 0.01))


def test_inputs_with_most_energy_come_first_and_equals_in_their_order() -> None:
    energy = np.random.default_rng(0).integers(1, 4, 200).astype(float)
    expected = sorted(range(200), key=lambda j: (-energy[j], j))
    assert obs.by_importance(np.diag(energy)).tolist() == expected


def test_all_inputs_dead() -> None:
    w, _ = small()
    project = Nearest(w, 4)
    np.testing.assert_array_equal(obs.solve(w, np.zeros((24, 24)), project), project.all(w))


@given(st.integers(0, 10_000), st.integers(1, 12), st.floats(1e-6, 1.0))
def test_the_factor_inverts(seed: int, size: int, damping: float) -> None:
    _, h = small(columns=size, seed=seed)
    u = obs.factor(h, damping)
    np.testing.assert_array_equal(u, np.triu(u))
    damped = h + damping * h.diagonal().mean() * np.eye(size)
    np.testing.assert_allclose(u.T @ u @ damped, np.eye(size), atol=1e-7)


def test_torch_finds_the_same_factor() -> None:
    torch = pytest.importorskip("torch")
    _, h = small(columns=9)
    h[4] = h[:, 4] = 0
    np.testing.assert_allclose(
        obs.factor(torch.from_numpy(h), 0.02).numpy(), obs.factor(h, 0.02), rtol=1e-9, atol=1e-12
    )
    with pytest.raises(BadRequest, match="positive definite"):
        obs.factor(torch.ones(3, 3, dtype=torch.float64) - 2 * torch.eye(3, dtype=torch.float64), 0.01)


def test_bad_moments_are_named() -> None:
    w, h = small(columns=4)
    singular = np.ones((4, 4))
    with pytest.raises(BadRequest, match="positive definite"):
        obs.solve(w, singular - 2 * np.eye(4), Nearest(w, 4))
    h[1, 1] = np.nan
    with pytest.raises(BadRequest, match="NaN"):
        obs.solve(w, h, Nearest(w, 4))
