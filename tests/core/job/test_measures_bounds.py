"""Where measures of the gate turn: bars in decibels met just so and missed just so, outputs of one axis."""

from __future__ import annotations

import numpy as np
import pytest

from graphpress.job.bars import Gate
from graphpress.job.chance import Verdict
from graphpress.job.natures import Kind, Nature
from tests.core.job.test_measures import figures

RNG = np.random.default_rng(3)
WHAT = "decibels over what differs between samples"


@pytest.mark.parametrize("shape", [(400,), (400, 3)])
@pytest.mark.parametrize(("decibels", "asked", "verdict"), [
    (20.0, 19.9, Verdict.PASSED), (20.0, 20.2, Verdict.FAILED),
    (35.0, 34.9, Verdict.PASSED), (35.0, 35.2, Verdict.FAILED),
])  # fmt: skip
def test_values_against_a_bar_in_decibels(
    shape: tuple[int, ...], decibels: float, asked: float, verdict: Verdict
) -> None:
    a = RNG.normal(size=shape) * 3 + 50  # what is the same for all samples does not count
    error = RNG.normal(size=shape)
    error *= np.sqrt(np.square(a - a.mean(0)).sum() / np.square(error).sum() / 10 ** (decibels / 10))
    found = figures(Nature(Kind.VALUES), a, a + error, Gate(min_sqnr=asked))[WHAT]
    assert found.value == pytest.approx(decibels, abs=1e-9) and found.verdict is verdict


def test_values_that_hardly_differ_are_not_judged_by_their_differences() -> None:
    a = np.full((64, 2), 7.0)
    assert WHAT not in figures(Nature(Kind.VALUES), a, a + 1e-3)


def test_positions_that_all_stay_are_as_many_trials() -> None:
    a = RNG.normal(size=(12, 30, 8)) * 4
    found = figures(Nature(Kind.CLASSES, 2), a, a)["agreement of the choice"]
    assert found.low == pytest.approx(360 / (360 + 1.959963984540054**2), abs=1e-12)  # Wilson's interval at p = 1
