"""Intervals against tables and simulation, verdicts where they turn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import stdtrit

from graphpress.job import chance
from graphpress.job.chance import Verdict


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    # R. G. Newcombe, "Two-sided confidence intervals for the single proportion", Stat. Med. 17 (1998), table I:
    # without correction; the last row is the closed form at n = 4
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718),
     (4, 4, 4 / (4 + 1.959964**2), 1.0)],
)  # fmt: skip
def test_wilson_as_in_the_literature(right: int, of: int, low: float, high: float) -> None:
    assert chance.share(right, of) == pytest.approx((low, high), abs=6e-5)


def test_nothing_is_known_without_trials() -> None:
    assert chance.share(0, 0) == (0.0, 1.0)
    assert chance.mean(np.array([3.0])) == (-math.inf, math.inf)


def test_students_interval_as_in_the_table() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0])  # t of 3 degrees of freedom: 3.182; standard error sqrt(5/3) / 2
    half = 3.182446 * math.sqrt(5 / 3) / 2
    assert chance.mean(values) == pytest.approx((2.5 - half, 2.5 + half), abs=1e-5)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 10, 11, 59, 60, 1999, 100_000])
def test_students_t_as_scipy_has_it(freedom: int) -> None:
    close = 1e-10 if freedom > 100 else 1e-13
    assert chance.student(freedom) == pytest.approx(float(stdtrit(freedom, 0.975)), rel=close)


def test_trials_that_go_together_count_as_fewer() -> None:
    together = chance.share_of_many(np.array([1.0] * 9 + [0.0]), 1000)
    assert together == pytest.approx(chance.share(9, 10), abs=0.02)  # each sample is one trial in truth
    rng = np.random.default_rng(0)
    apart = chance.share_of_many(rng.binomial(100, 0.9, 400) / 100, 40000)
    assert apart[1] - apart[0] == pytest.approx(2 * 1.96 * math.sqrt(0.09 / 40000), rel=0.15)
    few = np.array([1.0, 0.5, 0.9, 0.8])  # mean 0.8, variance of the mean 0.14 / 3 / 4: as many as 0.16 / that trials
    assert chance.share_of_many(few, 1000) == pytest.approx(chance.share(0.8 * 96 / 7, 96 / 7), abs=1e-12)
    assert chance.share_of_many(np.ones(3), 300) == chance.share(300, 300)  # nothing says that they go together
    assert chance.share_of_many(np.ones(1), 300) == chance.share(1, 1)


@pytest.mark.parametrize(("p", "n"), [(0.5, 10), (0.9, 64), (0.98, 200)])
def test_95_of_100_intervals_hold_the_truth(p: float, n: int) -> None:
    found = [chance.share(k, n) for k in np.random.default_rng(1).binomial(n, p, 2000)]
    assert np.mean([low <= p <= high for low, high in found]) > 0.92


def test_a_verdict_wants_the_bar_reached_and_no_more_than_twice_as_bad_possible() -> None:
    passed, failed, unsure = Verdict
    assert [chance.at_least(v, lo, hi, 0.9) for v, lo, hi in (
        (0.9, 0.8, 0.95), (0.9, 0.79, 0.95), (0.89, 0.88, 0.9), (0.89, 0.88, 0.899), (1, 0.51, 1), (0.75, 0.3, 0.95),
    )] == [passed, unsure, unsure, failed, unsure, unsure]  # fmt: skip
    assert [chance.at_most(v, lo, hi, 2.0) for v, lo, hi in (
        (2.0, 0.0, 4.0), (2.0, 0.0, 4.1), (2.1, 0.5, 9.0), (2.1, 0.51, 9.0), (0.0, -math.inf, math.inf), (0, 0, 0),
    )] == [passed, unsure, unsure, failed, unsure, passed]  # fmt: skip


def test_where_nothing_is_lost_the_upper_end_is_that_of_the_rule_of_three() -> None:
    """n zeros and one at the bound: mean b / (n + 1), standard error the same."""
    t = {20: 2.085963, 60: 2.000298}  # of n degrees of freedom
    for n, of_t in t.items():
        assert chance.mean_loss(np.zeros(n), 0.5) == pytest.approx((0.0, 0.5 * (1 + of_t) / (n + 1)), abs=1e-7)
        assert chance.mean_loss(np.zeros(n), 0.0) == (0.0, 0.0)
    assert chance.mean_loss(np.zeros(1), 0.5) == (-math.inf, math.inf)
    values = np.array([0.0, 1.0, 2.0, 3.0])
    assert chance.mean_loss(values, 1.0) == chance.mean(values)  # never closer than Student's


def test_the_upper_end_of_rare_losses_holds_where_that_of_student_does_not() -> None:
    """3 of 100 samples lose 0.4: Student's end is below the mean where none of 20 is among them, in 54 of 100 cases."""
    rng = np.random.default_rng(0)
    drawn = 0.4 * (rng.uniform(size=(2000, 20)) < 0.03)
    assert np.mean([chance.mean(v)[1] < 0.012 for v in drawn]) > 0.5
    assert np.mean([chance.mean_loss(v, 0.4)[1] < 0.012 for v in drawn]) < 0.025
