"""Ranges of rows: their extremes, and which shrunken ones the search looks at."""

from __future__ import annotations

import numpy as np
import pytest

from graphpress.passes.quantizers import row_ranges
from graphpress.passes.quantizers.row_ranges import extremes, least_error


def test_extremes_hold_zero() -> None:
    lo, hi = extremes(np.array([[1, 3, 2], [-4, 5, 0], [-1, -7, -2]], np.float32))
    assert lo.tolist() == [0, -4, -7] and hi.tolist() == [3, 5, 0]
    lo, hi = extremes(np.zeros((2, 0), np.float32))
    assert lo.tolist() == hi.tolist() == [0, 0] and lo.dtype == np.float32


@pytest.mark.parametrize(
    ("least", "fine", "found"),
    [
        (0.63, [0.525, 0.55, 0.575, 0.625, 0.65, 0.675], 0.625),
        (0.1, [0.125, 0.15, 0.175, 0.225, 0.25, 0.275], 0.125),
        (1.2, [0.925, 0.95, 0.975, 1.025, 1.05, 1.075], 1.0),  # never wider than the extremes
    ],
)
def test_nine_ratios_are_tried_and_then_six_around_the_best(least: float, fine: list[float], found: float) -> None:
    tried: list[float] = []

    def error(rows: np.ndarray, lo: np.ndarray, hi: np.ndarray, costs: np.ndarray | None) -> np.ndarray:
        np.testing.assert_allclose(lo, -2 * hi)
        tried.append(float(hi[0]))
        return np.abs(hi - least)

    lo, hi = least_error(np.array([[-2, 1, 0.5]]), error)
    np.testing.assert_allclose(tried, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, *fine], atol=1e-12)
    np.testing.assert_allclose([lo[0], hi[0]], [-2 * found, found], atol=1e-12)


def test_of_equal_errors_the_widest_is_taken_and_each_row_is_its_own() -> None:
    _, hi = least_error(np.array([[1.0, 0.0]]), lambda rows, lo, hi, costs: np.zeros(1))
    assert hi.tolist() == [1.0]
    wanted = np.array([0.4, 0.9])
    _, hi = least_error(np.ones((2, 3)), lambda rows, lo, hi, costs: np.abs(hi - wanted))
    np.testing.assert_allclose(hi, wanted, atol=1e-12)


def test_rows_are_looked_at_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, costs = np.arange(10.0).reshape(5, 2) + 1, np.arange(10.0).reshape(5, 2)
    seen: list[int] = []

    def error(rows: np.ndarray, lo: np.ndarray, hi: np.ndarray, costs: np.ndarray | None) -> np.ndarray:
        assert costs is not None
        np.testing.assert_array_equal(costs, rows - 1)
        seen.append(len(rows))
        return np.abs(hi - 0.5 * rows[:, 1])

    for block, blocks in ((5, [2, 2, 1]), (1, [1] * 5), (10, [5]), (100, [5])):
        monkeypatch.setattr(row_ranges, "_BLOCK", block)
        seen.clear()
        _, hi = least_error(rows, error, costs)
        np.testing.assert_allclose(hi, 0.5 * rows[:, 1])
        assert [n for i, n in enumerate(seen) if i % 15 == 0] == blocks
    lo, hi = least_error(np.zeros((0, 4)), error)
    assert lo.shape == hi.shape == (0,)
    lo, hi = least_error(np.zeros((2, 0)), lambda rows, lo, hi, costs: np.zeros(len(rows)))
    assert lo.tolist() == hi.tolist() == [0, 0]
