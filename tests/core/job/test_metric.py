"""Labels: one class a sample or a position; what is no class is refused before anything runs."""

from __future__ import annotations

import numpy as np
import pytest

import graphpress as gp
from graphpress.errors import CalibrationError
from graphpress.job.metric import check_labels, top1
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
    assert top1(data(SCORES, labels))(lambda feeds: {"y": feeds["x"]}) == pytest.approx(share, rel=1e-12)


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
        top1(data(np.zeros((2, 4), np.float32), np.zeros((2, 3), int)))(lambda feeds: {"y": feeds["x"]})
