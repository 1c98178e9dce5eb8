"""How sure a comparison of latencies is, against the binomial law and repeated draws."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from graphpress.job import latency


@pytest.mark.parametrize(
    ("count", "rank"), [(1, 0), (5, 0), (6, 0), (8, 0), (9, 1), (10, 1), (12, 2), (20, 5), (50, 17), (100, 39)]
)
def test_the_interval_of_the_median_is_that_of_the_binomial_law(count: int, rank: int) -> None:
    """The largest rank below which the median lies with a chance of 2.5 % at most, worked out by hand."""
    assert latency._interval(list(range(count))) == (rank, count - 1 - rank)


@pytest.mark.parametrize("count", [7, 30, 400])
def test_the_interval_holds_the_median_as_often_as_it_says(count: int) -> None:
    rng = np.random.default_rng(count)
    drawn = np.sort(rng.exponential(size=(4000, count)), axis=1)
    ends = [latency._interval(row) for row in drawn[:1500].tolist()]
    held = np.mean([low <= math.log(2) <= high for low, high in ends])
    assert held > 0.93


@pytest.mark.parametrize(("noise", "busy"), [(0.0, 0.0), (1.0, 1.0)])
def test_runs_that_disagree_say_that_the_machine_was_busy(
    monkeypatch: pytest.MonkeyPatch, noise: float, busy: float
) -> None:
    rng = np.random.default_rng(0)
    times = {"a": 1.0, "b": 0.5}
    monkeypatch.setattr(latency, "_once", lambda runner, feeds: times[runner.name] * (1 + noise * rng.exponential()))

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, feeds: object) -> None: ...

    found = latency.compare_latency(Named("a"), Named("b"), {}, seconds=0.0, least=20)  # type: ignore[arg-type]
    assert found["busy"] == busy
    assert found["ratio_low"] <= found["ratio"] <= found["ratio_high"]
    assert noise or found["ratio"] == 0.5


def timed(monkeypatch: pytest.MonkeyPatch, draw: Callable[[], float], **options: float) -> dict[str, float]:
    """Of pairs that take 5 ms each, the second ``draw()`` times that."""
    clock = [0.0]

    def once(runner: Callable[[object], float], feeds: object) -> float:
        clock[0] += 0.005
        return 0.005 * runner(feeds)

    monkeypatch.setattr(latency, "_once", once)
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[0])
    return latency.compare_latency(lambda feeds: 1.0, lambda feeds: draw(), {}, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("noise", "pairs"), [(0.001, 30), (0.05, 40), (0.3, 100)])
def test_measuring_ends_when_enough_is_known(monkeypatch: pytest.MonkeyPatch, noise: float, pairs: int) -> None:
    """Two per cent at the first look; five, once it is in a hurry; never."""
    rng = np.random.default_rng(1)
    found = timed(monkeypatch, lambda: 1 + noise * rng.normal(), seconds=1.0, hurry=0.35)
    assert found["runs"] == pytest.approx(pairs, abs=1)
    assert (found["ratio_high"] <= 1.05 * found["ratio_low"]) == (pairs < 100)
    assert timed(monkeypatch, lambda: 1 + 0.05 * rng.normal())["runs"] > 60  # in none by itself


@pytest.mark.parametrize("noise", [0.03, 0.08])
def test_looking_again_and_again_leaves_the_interval_true(monkeypatch: pytest.MonkeyPatch, noise: float) -> None:
    rng = np.random.default_rng(2)
    found = [timed(monkeypatch, lambda: 1 + noise * float(rng.standard_t(3)), hurry=0.3) for _ in range(400)]
    assert np.mean([f["ratio_low"] <= 1 <= f["ratio_high"] for f in found]) > 0.92
