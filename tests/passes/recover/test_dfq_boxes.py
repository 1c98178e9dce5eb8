"""Pictures for detectors: what a sampler of labels keeps, adaptive labels on blobs, the loss, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_ir.passes.common import ShapeInferencePass

from graphpress.backends import reference
from graphpress.backends.fx.build import build
from graphpress.context import Context
from graphpress.contracts import PassReport
from graphpress.errors import BadRequest
from graphpress.passes.recover.inputs.box_labels import Found, Labels, overlaps
from graphpress.passes.recover.inputs.dfq_boxes import DfqBoxes, detection
from tests import kit
from tests.passes.quantizing import model, normal

CTX = Context(run=reference.execute, oracle=reference.execute, differentiate=build)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Of two boxes, by hand."""
    sides = [max(min(a[i + 2], b[i + 2]) - max(a[i], b[i]), 0.0) for i in range(2)]
    both = sides[0] * sides[1]
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    low = rng.uniform(-0.1, 0.9, (count, 2))
    return np.concatenate([low, low + rng.uniform(0.01, 0.9, (count, 2))], 1)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(0, 12), rounds=st.integers(1, 4))
def test_targets_stay_inside_apart_and_at_least_one(seed: int, count: int, rounds: int) -> None:
    rng = np.random.default_rng(seed)
    labels = Labels.drawn(rng, 3)
    (first,) = labels.corners
    assert ((first >= 0) & (first <= 1)).all() and ((first[2:] - first[:2]) >= 0.2 - 1e-9).all()
    for _ in range(rounds):
        found = Found(boxes(rng, count), np.sort(rng.random(count))[::-1], rng.integers(0, 3, count))
        before = labels.corners.tolist()
        labels = labels.adapted(found)
        assert len(labels.corners) == len(labels.classes) >= 1
        assert (labels.corners >= 0).all() and (labels.corners <= 1).all()
        sure = [b for b, s in zip(found.corners, found.scores, strict=True) if s > 0.2]
        added = [c for c in labels.corners if c.tolist() not in before]
        for c in added:
            assert 0.01 < (c[2:] - c[:2]).prod() < 0.85
            assert any(np.allclose(np.clip(b, 0, 1), c) for b in sure)
        for i, c in enumerate(labels.corners):
            assert all(iou(c, other) < 0.35 for other in labels.corners[:i])
        kept = [c for c in labels.corners if c.tolist() in before]
        if len(labels.corners) > 1:
            assert all(any(iou(c, b) >= 0.35 for b in found.corners) for c in kept)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_labels_reach_the_blobs_that_a_detector_sees(seed: int) -> None:
    rng = np.random.default_rng(seed)
    blobs = np.array([[0.05, 0.05, 0.3, 0.3], [0.6, 0.1, 0.9, 0.4], [0.1, 0.6, 0.4, 0.9], [0.6, 0.6, 0.95, 0.9]])[
        : seed + 2
    ]
    labels = Labels.drawn(rng, 1)
    for _ in range(3):
        shaken = np.repeat(blobs, 3, 0) + rng.normal(0, 0.01, (3 * len(blobs), 4))
        labels = labels.adapted(Found.of(rng.uniform(0.5, 0.9, (len(shaken), 1)), shaken))
    assert abs(len(labels.corners) - len(blobs)) <= 1
    assert (overlaps(blobs, labels.corners).max(1) >= 0.35).all()  # the drawn one may stand for a blob


def test_what_overlaps_and_is_less_sure_is_no_detection_and_others_are_best_first() -> None:
    corners = np.array([[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.48], [0.5, 0.5, 1, 1], [0, 0, 0.5, 0.5], [0, 0, 1, 1]], float)
    scores = np.array([[0.6, 0], [0.7, 0], [0.1, 0.9], [0, 0.3], [0.0005, 0]])
    found = Found.of(scores, corners)
    assert found.scores.tolist() == [0.9, 0.7, 0.3] and found.classes.tolist() == [1, 0, 1]


def test_the_loss_by_hand() -> None:
    corners = torch.tensor([[[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.4], [0.5, 0.5, 1, 1], [0.6, 0, 1, 0.3]]]).float()
    scores = torch.tensor([[[0.8], [0.5], [0.1], [0.4]]])
    labels = [Labels(np.array([[0, 0, 0.5, 0.5]]), np.array([0]))]
    hit, wrong, box = -np.log([0.8, 0.5]).mean(), -np.log([0.9, 0.6]).sum() / 2, 1 - (1 + 0.8) / 2
    assert detection(scores, corners, labels).item() == pytest.approx(hit + wrong + box, rel=1e-5)


DETECTOR = """
g (float[2, 3, 8, 8] x, float[8, 3, 3, 3] a, float[8] one, float[8] zero, float[2, 8, 1, 1] s, float[4, 8, 1, 1] b,
   int64[3] rows, float[1, 64, 4] priors, float[1, 1, 4] small) => (float[2, 64, 2] scores, float[2, 64, 4] boxes) {
    h = Conv <pads = [1, 1, 1, 1]> (x, a)
    n = BatchNormalization (h, one, zero, zero, one)
    r = Relu(n)
    p = Conv(r, s)
    p2 = Reshape(p, rows)
    p3 = Transpose <perm = [0, 2, 1]> (p2)
    scores = Softmax <axis = 2> (p3)
    q = Conv(r, b)
    q2 = Reshape(q, rows)
    q3 = Transpose <perm = [0, 2, 1]> (q2)
    q4 = Mul(q3, small)
    boxes = Add(q4, priors)
}"""


def detector() -> ir.Model:
    place = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(1, 64, 2) / 8
    weights = {
        "a": normal(8, 3, 3, 3) / 5, "one": np.ones(8), "zero": np.zeros(8), "s": normal(2, 8, 1, 1, seed=1),
        "b": normal(4, 8, 1, 1, seed=2), "rows": np.array([2, -1, 64]),
        "priors": np.concatenate([place - 0.2, place + 0.2], 2), "small": np.full((1, 1, 4), 0.02),
    }  # fmt: skip
    made = model(DETECTOR, weights)
    return ShapeInferencePass()(made).model


def run(made: ir.Model, **options: Any) -> PassReport:
    return kit.apply(made, DfqBoxes(**options), ctx=CTX)[1][0]


@pytest.mark.slow
def test_pictures_show_more_than_noise_and_stay_in_their_range() -> None:
    report = run(detector(), samples=2, iterations=6, range=(-1, 1))
    x = np.concatenate([f["x"] for f in report.handed["data"].batches(2)])
    assert x.shape == (2, 3, 8, 8) and np.abs(x).max() <= 1
    assert report.metrics["loss"] < 0.9 * report.metrics["loss of noise"] and report.metrics["boxes"] >= 2
    again = run(detector(), samples=2, iterations=6, range=(-1, 1))
    assert np.array_equal(np.concatenate([f["x"] for f in again.handed["data"].batches(2)]), x)


def test_one_clear_error() -> None:
    with pytest.raises(BadRequest, match="finds 0 such pairs"):
        run(detector(), boxes="scores")
    with pytest.raises(BadRequest, match="2 classes, none of which is 7"):
        run(detector(), samples=2, iterations=1, background=7)
    shifted = detector()
    shifted.graph.initializers["priors"].const_value = ir.tensor(np.full((1, 64, 4), 50, np.float32), name="priors")
    with pytest.raises(BadRequest, match="no shares of the picture"):
        run(shifted, samples=2, iterations=1)


def test_a_detector_that_ends_in_a_grid_is_refused() -> None:
    grid = detector()
    grid.graph.outputs[:] = [v for n in grid.graph for v in n.outputs if n.op_type == "BatchNormalization"][:1]
    with pytest.raises(BadRequest, match=r"finds 0 such pairs\. Name them in options scores and boxes, or use zeroq"):
        run(grid, samples=2, iterations=1)


def test_fastestdet_has_no_statistics_left(zoo: Path) -> None:
    with pytest.raises(BadRequest, match="the model holds no statistics of BatchNormalization"):
        run(ir.load(zoo / "detection/fastestdet/FastestDet.onnx"), samples=1, iterations=1)
