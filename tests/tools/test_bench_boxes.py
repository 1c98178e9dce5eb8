"""Boxes against brute force: overlap by counting cells; suppression and precision by definition, in plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphpress.tools.bench.boxes import Boxes, average_precision, iou, suppress
from graphpress.tools.bench.detection import agreement, faces, objects

corner = st.integers(0, 12)
box = st.tuples(corner, corner, corner, corner, st.integers(1, 9), st.integers(0, 1))
boxes = st.lists(box, max_size=8)


def make(rows: list[tuple[int, ...]], scores: bool = True) -> Boxes:
    t = np.array(rows, float).reshape(-1, 6)
    low, high = np.minimum(t[:, :2], t[:, 2:4]), np.maximum(t[:, :2], t[:, 2:4])
    return Boxes(np.hstack([low, high]), t[:, 4] / 10 if scores else np.ones(len(t)), t[:, 5].astype(int))


def cells(b: np.ndarray) -> set[tuple[int, int]]:
    x1, y1, x2, y2 = map(int, b)
    return {(x, y) for x in range(x1, x2) for y in range(y1, y2)}


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    union = len(cells(a) | cells(b))
    return len(cells(a) & cells(b)) / union if union else 0.0


@given(boxes, boxes)
def test_iou_counts_cells(a: list, b: list) -> None:
    a, b = make(a).corners, make(b).corners
    want = np.array([[overlap(x, y) for y in b] for x in a]).reshape(len(a), len(b))
    np.testing.assert_allclose(iou(a, b), want, atol=1e-12)


@given(boxes)
def test_suppression_keeps_what_no_better_kept_box_overlaps(rows: list) -> None:
    found = make(rows)
    kept: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: -found.scores[i]):
        if all(
            overlap(found.corners[i], found.corners[k]) <= 0.3 or found.classes[i] != found.classes[k] for k in kept
        ):
            kept.append(i)
    np.testing.assert_array_equal(suppress(found, 0.3).corners, found.corners[kept])


def precision_by_definition(truth: list[Boxes], found: list[Boxes], label: int) -> float:
    """AP of one class: walk down the scores, match greedily, then the best precision at or beyond each recall."""
    everything = [
        (s, i, c)
        for i, f in enumerate(found)
        for s, c, k in zip(f.scores, f.corners, f.classes, strict=True)
        if k == label
    ]
    left = {
        (i, j)
        for i, t in enumerate(truth)
        for j, (s, k) in enumerate(zip(t.scores, t.classes, strict=True))
        if k == label and s > 0
    }
    total, right, points = len(left), 0, []
    for n, (_, i, c) in enumerate(sorted(everything, key=lambda e: -e[0]), 1):
        ranked = sorted((-overlap(c, truth[i].corners[j]), j) for k, j in left if k == i)
        if ranked and -ranked[0][0] >= 0.5:
            left.remove((i, ranked[0][1]))
            right += 1
        points.append((right / total, right / n))
    return float(np.mean([max((p for r, p in points if r >= at), default=0) for at in np.linspace(0, 1, 101)]))


@given(st.lists(st.tuples(boxes, boxes), min_size=1, max_size=3))
def test_average_precision_is_its_definition(images: list) -> None:
    truth, found = [make(t, scores=False) for t, _ in images], [make(f) for _, f in images]
    labels = {int(c) for t in truth for c in t.classes}
    got = average_precision(truth, found)
    if not labels:
        assert np.isnan(got)
        return
    want = 100 * np.mean([precision_by_definition(truth, found, c) for c in labels])
    assert got == pytest.approx(want, abs=1e-9)


def test_detections_in_a_crowd_do_not_count() -> None:
    truth = Boxes(np.array([[0.0, 0, 2, 2], [4, 4, 10, 10]]), np.array([1.0, -1.0]), np.zeros(2, int))
    found = Boxes(
        np.array([[5.0, 5, 6, 6], [0, 0, 2, 2], [20, 20, 21, 21]]), np.array([0.9, 0.8, 0.7]), np.zeros(3, int)
    )
    assert average_precision([truth], [found]) == 100.0
    nowhere = Boxes(found.corners + 30, found.scores, found.classes)
    assert average_precision([truth], [nowhere]) == 0.0


@given(boxes)
def test_a_detector_agrees_with_itself(rows: list) -> None:
    found = suppress(make([r for r in rows if r[0] != r[2] and r[1] != r[3]]), 0.3)
    if len(found.scores):
        scores = agreement([found], [found])
        assert scores["box AP50 vs float %"] == pytest.approx(100)
        assert (scores["mean IoU"], scores["matched %"]) == (1.0, 100.0)


def test_fastestdet_is_decoded_cell_by_cell() -> None:
    rng = np.random.default_rng(0)
    grid = rng.uniform(-1, 1, (85, 3, 4)).astype(np.float32)
    grid[0], grid[5:] = rng.uniform(0, 1, (3, 4)), rng.uniform(0, 1, (80, 3, 4))
    want = []
    for y in range(3):
        for x in range(4):
            obj, dx, dy, w, h = grid[:5, y, x]
            label = int(grid[5:, y, x].argmax())
            cx, cy = (x + np.tanh(dx)) / 4, (y + np.tanh(dy)) / 3
            w, h = 1 / (1 + np.exp(-w)), 1 / (1 + np.exp(-h))
            score = obj**0.6 * grid[5 + label, y, x] ** 0.4
            want.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2, score, label])
    found = objects(grid)
    got = np.column_stack([found.corners, found.scores, found.classes])
    table = np.array(want)
    for row in got:
        assert np.abs(table - row).max(1).min() < 1e-6
    assert len(got) == len(suppress(Boxes(table[:, :4], table[:, 4], table[:, 5].astype(int)), 0.45).scores)


def test_faces_are_those_above_the_candidate_score() -> None:
    corners = np.array(
        [[[0, 0, 0.5, 0.5], [0.01, 0, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9], [0.1, 0.6, 0.2, 0.7]]], np.float32
    )
    scores = np.array([[[0.1, 0.9], [0.2, 0.8], [0.4, 0.6], [0.6, 0.4]]], np.float32)
    np.testing.assert_array_equal(faces(scores, corners).corners, corners[0, [0, 2]])
