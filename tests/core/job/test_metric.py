"""Labels: one class a sample or a position; what is no class is refused before anything runs."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

import graphpress as gp
from graphpress.errors import CalibrationError
from graphpress.job.bars import Gate
from graphpress.job.chance import Verdict
from graphpress.job.gate import OutputCheck, judge, told
from graphpress.job.measures import Figure
from graphpress.job.metric import Top1, check_labels, labelled
from graphpress.job.natures import Kind
from tests import kit

MODEL = kit.parse("g (float[N, 4] x) => (float[N, 4] y) { y = Identity(x) }")
IMAGES = kit.parse("g (float[N, 3, 5, 5] x) => (float[N, 3, 5, 5] y) { y = Identity(x) }")
SCORES = np.random.default_rng(0).normal(size=(40, 3, 5, 6)).astype(np.float32)


def data(x: np.ndarray, labels: np.ndarray) -> gp.CalibrationData:
    return gp.CalibrationData.from_arrays({"x": x}, labels)


@pytest.mark.parametrize("axis", [1, 3])
def test_positions_have_a_class_each_on_the_second_or_the_last_axis(axis: int) -> None:
    labels = SCORES.argmax(axis)
    labels[:, 0] = -1  # does not count
    labels[:, 1:2] = (labels[:, 1:2] + 1) % 3
    share = 100 * (1 - labels[:, 1:2].size / labels[:, 1:].size)
    assert Top1(data(SCORES, labels))(lambda feeds: {"y": feeds["x"]}) == pytest.approx(share, rel=1e-12)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.eye(4)[[0, 1, 2]], r"shape \(3, 4\).*argmax\(1\)"),
        (np.array([0.0, 0.5, 1.0]), r"float64.*counted from 0"),
        (np.array(["cat", "dog", "cat"]), r"'cat' is no class"),
        (np.array([0, 9, 1]), r"holds 9 at sample 1, the first output has 4 classes"),
    ],
)
def test_what_is_no_class_is_refused_before_anything_runs(labels: np.ndarray, words: str) -> None:
    with pytest.raises(CalibrationError, match=f"data, array 'labels'.*{words}"):
        gp.compile(MODEL, "clean", {"x": np.zeros((3, 4), np.float32), "labels": labels}, prove=False)


@pytest.mark.parametrize(
    "labels", [np.array([0.0, 3.0]), np.array([[1], [2]]), np.array([-1, 3]), np.array([True, False])]
)
def test_classes_of_any_type_are_taken(labels: np.ndarray) -> None:
    check_labels(labels, MODEL)


def test_a_class_each_pixel_is_taken_and_one_too_many_is_found() -> None:
    labels = np.random.default_rng(0).integers(0, 3, (6, 5, 5))
    check_labels(labels, IMAGES)
    labels[4, 2, 1] = 3
    with pytest.raises(CalibrationError, match="holds 3 at sample 4, the first output has 3 classes"):
        check_labels(labels, IMAGES)


def test_shapes_that_are_not_known_are_judged_when_the_model_has_run() -> None:
    check_labels(np.array([[0, 1]]), kit.parse("g (float[N, C] x) => (float[N, C] y) { y = Identity(x) }"))
    with pytest.raises(CalibrationError, match="does not fit"):
        Top1(data(np.zeros((2, 4), np.float32), np.zeros((2, 3), int)))(lambda feeds: {"y": feeds["x"]})


def test_labels_tell_what_is_lost_by_the_samples_on_which_the_two_differ() -> None:
    """64 of 80 right and 60 of 80, where 6 are lost and 2 are won: 5 points, with the error of the differences."""
    mine, its = np.ones(80), np.ones(80)
    mine[64:], its[58:64], its[66:] = 0, 0, 0
    metric = Top1(data(np.zeros((80, 4), np.float32), np.zeros(80, int)))
    metric.classes = 4
    found = labelled(metric, (mine, np.ones(80)), (its, np.ones(80)), 2.0, change=0.0)
    assert (found.before, found.after, found.samples, found.chance) == (80.0, 75.0, 80, False)
    assert found.error == pytest.approx([100 * math.sqrt(p * (1 - p) / 79) for p in (0.8, 0.75)], rel=1e-12)
    spread = np.std([1] * 6 + [-1] * 2 + [0] * 72, ddof=1) / math.sqrt(80)
    half = 100 * 1.990450 * spread  # t of 79 degrees of freedom
    assert (found.lost.value, found.lost.low, found.lost.high) == pytest.approx((5, 5 - half, 5 + half), abs=1e-4)
    assert found.lost.verdict is Verdict.UNSURE  # -1.9 to 11.9


@pytest.mark.parametrize(("change", "verdict"), [(1.0, Verdict.UNSURE), (0.3, Verdict.UNSURE), (0.25, Verdict.PASSED)])
def test_twenty_samples_that_do_not_differ_do_not_tell_that_none_do(change: float, verdict: Verdict) -> None:
    """The rule of three, 3.086 / 21 = 14.7 %, of what a changed choice costs at most, against twice 2 points."""
    right = (np.arange(20) % 4 > 0).astype(float)
    metric = Top1(data(np.zeros((20, 4), np.float32), np.zeros(20, int)))
    metric.classes = 4
    found = labelled(metric, (right, np.ones(20)), (right, np.ones(20)), 2.0, change).lost
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(100 * change * (1 + 2.085963) / 21, abs=1e-4)  # t of 20 degrees of freedom
    assert found.verdict is verdict


def test_a_float_model_that_guesses_is_told() -> None:
    x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    _, report = gp.compile(MODEL, "clean", data(x, np.arange(200) % 4), prove=False)
    (said,) = [w for w in report.warnings if w.where == "labels"]
    assert "no more than a guess would be" in said.why
    _, good = gp.compile(MODEL, "clean", data(x, x.argmax(1)), prove=False)
    assert not [w for w in good.warnings if w.where == "labels"]
    assert good.metric == {"before": 100.0, "after": 100.0, "before_error": 0.0, "after_error": 0.0, "samples": 40}


def test_labels_that_show_no_loss_go_before_what_is_estimated() -> None:
    estimate = Figure("expected loss of accuracy", 9.0, 5.0, 13.0, 2.0, Verdict.FAILED)
    check = OutputCheck("y", 20.0, 0.99, 0.1, 0.8, Kind.CLASSES, [estimate])
    for lost, verdict in ((0.5, Verdict.PASSED), (3.0, Verdict.FAILED)):
        result = judge([dataclasses.replace(check)], 64, Gate())
        told(result, Figure("points of top-1 lost", lost, lost - 0.3, lost + 0.3, 2.0, verdict), Gate())
        assert result.verdict is verdict and len(result.outputs[0].figures) == 2
        assert len(result.failures) == (0 if verdict is Verdict.PASSED else 2)
