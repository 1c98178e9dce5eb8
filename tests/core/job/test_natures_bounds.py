"""Where what an output is taken for turns: axes, numbers of rows and columns, scores at their ends."""

from __future__ import annotations

import numpy as np
import pytest

from graphpress.errors import BadRequest
from graphpress.job.natures import Form, Kind, Nature, class_axis, confidence, find, objectness
from tests import kit
from tests.core.job.test_natures import logits, nature, softmax


def candidates(samples: int, *rows: int, classes: int = 3, best: float = 0.1) -> np.ndarray:
    """[samples, *rows, 4 + classes]: corners in pixels, then scores up to ``best``."""
    rng = np.random.default_rng(1)
    corners = rng.uniform(-20, 300, size=(samples, *rows, 4))
    scores = rng.uniform(best / 2, best, size=(samples, *rows, classes))
    return np.concatenate([corners, scores], -1)


@pytest.mark.parametrize(
    ("body", "seen", "expected"),
    [
        ("y = Softmax(x)", softmax(logits(4, 5, 6, 7), 3), Nature(Kind.CLASSES, 3, Form.PROBABILITIES)),
        ("y = MatMul(x, x)", logits(16, 3), Nature(Kind.CLASSES, 1, sure=False)),
        ("y = MatMul(x, x)", 6 * logits(64, 1) + 2.5 * logits(64, 10), Nature(Kind.CLASSES, 1, sure=False)),
    ],
)
def test_classes(body: str, seen: np.ndarray, expected: Nature) -> None:
    assert nature(body, seen) == expected


def test_rows_that_add_up_to_one_but_go_below_zero_are_no_probabilities() -> None:
    seen = np.stack([np.append(a, 1 - a.sum()) for a in logits(16, 3)])
    assert nature("y = Neg(x)", seen) == Nature(Kind.VALUES)


def test_one_column_is_no_choice_whatever_its_name() -> None:
    assert nature("logits = MatMul(x, x)", logits(16, 1), name="logits") == Nature(Kind.VALUES)


@pytest.mark.parametrize("shape", [(2, 50), (3, 60), (2, 5, 12)])
def test_fifty_rows_of_boxes_and_low_scores_are_candidates(shape: tuple[int, ...]) -> None:
    seen = candidates(*shape)
    assert nature("y = Concat <axis = -1> (x, x)", seen) == Nature(Kind.BOXES, seen.ndim - 1, boxes="y")


@pytest.mark.parametrize("shape", [(2, 49), (8, 10), (2, 3, 16)])
def test_fewer_rows_are_none(shape: tuple[int, ...]) -> None:
    assert nature("y = Concat <axis = -1> (x, x)", candidates(*shape)).kind is not Kind.BOXES


def test_candidates_whose_classes_add_up_to_one_are_background_by_another_column() -> None:
    """One of two classes is above a half in every row; whether there is anything, the column before them says."""
    corners, there = candidates(2, 80)[..., :4], np.full((2, 80, 1), 0.02)
    there[:, ::20] = 0.9
    classes = softmax(logits(2, 80, 2), 2)
    assert nature("y = Concat <axis = -1> (x, x)", np.concatenate([corners, there, classes], -1)).kind is Kind.BOXES
    assert nature("y = Concat <axis = -1> (x, x)", np.concatenate([corners, classes], -1)).kind is not Kind.BOXES


def test_most_candidates_are_background_and_the_best_may_score_one() -> None:
    low = candidates(2, 80, best=0.4)
    assert nature("y = Concat <axis = -1> (x, x)", low).kind is Kind.BOXES
    low[0, 3, 4:] = 1.0
    assert nature("y = Concat <axis = -1> (x, x)", low).kind is Kind.BOXES
    assert nature("y = Concat <axis = -1> (x, x)", candidates(2, 80, best=1.0)).kind is not Kind.BOXES


def high(first: int, both: int, others: int) -> np.ndarray:
    """Scores of 60 rows in three columns: the first is high in so many, in ``both`` of them the second is as well, and
    in ``others`` more rows the second and the third are."""
    scores = np.full((60, 3), 0.1)
    scores[:first, 0], scores[:both, 1], scores[30 : 30 + others, 1:] = 0.9, 0.9, 0.9
    return scores


@pytest.mark.parametrize(("scores", "column"), [
    (high(10, 5, 0), 0), (high(10, 4, 0), None), (high(6, 6, 2), 0), (high(5, 5, 2), None), (high(0, 0, 4), None),
])  # fmt: skip
def test_objectness_is_high_beside_a_class_in_half_of_its_rows_and_in_three_of_four_rows_with_two(
    scores: np.ndarray, column: int | None
) -> None:
    assert objectness(scores, after_box=True) == column
    assert objectness(scores, after_box=False) is None


def test_objectness_is_beside_classes_that_add_up_to_one_wherever_it_stands() -> None:
    share, there = np.linspace(0.1, 0.9, 60), np.linspace(0, 0.8, 60)
    scores = np.stack([share, there, 1 - share], -1)
    assert objectness(scores, after_box=False) == 1
    assert objectness(scores * 0.99, after_box=False) is None


def test_confidence_is_the_geometric_mean_with_each_class() -> None:
    scores = np.random.default_rng(0).uniform(size=(2, 5, 3))
    expected = np.stack([np.sqrt(scores[..., 0] * scores[..., 1]), np.sqrt(scores[..., 2] * scores[..., 1])], -1)
    assert np.array_equal(confidence(scores, 1), expected)
    assert np.array_equal(confidence(scores, None), scores)


@pytest.mark.parametrize(("kind", "shape"), [
    ("classes", (20,)), ("classes", (20, 1)), ("classes", (20, 0)), ("classes", (0, 3)),
    ("embedding", (20,)), ("embedding", (20, 5, 8)),
    ("boxes", (20, 8)), ("boxes", (2, 60, 9)),
])  # fmt: skip
def test_an_output_that_cannot_be_what_is_said_of_it_is_refused(kind: str, shape: tuple[int, ...]) -> None:
    dims = ", ".join(map(str, ("N", *shape[1:])))
    model = kit.parse(f"g (float[{dims}] x) => (float[{dims}] y) {{ y = Identity(x) }}")
    with pytest.raises(BadRequest, match=rf"'y': {kind}: it has shape"):
        find(model, {"y": np.random.default_rng(0).normal(size=shape)}, {"y": kind})


def test_a_map_of_classes_has_them_on_its_second_axis_and_a_sequence_on_its_last() -> None:
    assert class_axis(logits(4, 5, 6, 7)) == 1 and class_axis(logits(4, 5, 6)) == 2
    assert class_axis(softmax(logits(4, 5, 6, 7), 3)) == 3 and class_axis(softmax(logits(4, 5, 6), 1)) == 1


def test_scores_are_between_zero_and_one() -> None:
    table = candidates(2, 80)
    table[0, 0, 5] = 1.5  # no score then, and no box of five numbers
    assert nature("y = Concat <axis = -1> (x, x)", table).kind is not Kind.BOXES


def test_of_what_is_told_to_be_classes_it_is_found_how_they_are_written() -> None:
    told = nature("y = Relu(x)", softmax(logits(4, 9), 1), said="classes")
    assert told == Nature(Kind.CLASSES, 1, Form.PROBABILITIES)


def test_length_one_means_to_a_thousandth() -> None:
    rows = logits(16, 30)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert nature("y = Relu(x)", rows).kind is Kind.EMBEDDING
    assert nature("y = Relu(x)", 1.02 * rows).kind is not Kind.EMBEDDING


def test_fifty_boxes_beside_scores_are_enough() -> None:
    model = kit.parse("g (float[N, 8] x) => (float[N, 50, 2] s, float[N, 50, 4] c) { s = Softmax(x) c = Neg(x) }")
    found = find(model, {"s": softmax(logits(3, 50, 2), 2), "c": logits(3, 50, 4)})
    assert {n.kind for n in found.values()} == {Kind.BOXES}
