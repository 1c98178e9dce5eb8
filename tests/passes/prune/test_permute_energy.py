"""What permute keeps, against the sums of its docstring in float64."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.backends import ort
from graphpress.context import Context
from graphpress.graph import edit
from graphpress.observe.data import CalibrationData
from graphpress.passes.clean.infer_shapes import InferShapes
from graphpress.passes.prune.permute import Permute
from tests import kit
from tests.passes import quantizing

RNG = np.random.default_rng(0)
W, U = RNG.normal(size=(8, 16)).astype(np.float32), RNG.normal(size=(16, 5)).astype(np.float32)
U *= np.where(np.arange(16) < 4, 6, 1)[:, None]  # the loud rows stand together: an order that parts them keeps more
X = (RNG.normal(size=(200, 8)) * np.logspace(0, 1, 8)).astype(np.float32)


def model() -> ir.Model:
    text = """g (float[N, 8] x, float[8, 16] w, float[16, 5] u) => (float[N, 5] y) {
        h = MatMul(x, w) r = Relu(h) y = MatMul(r, u)
    }"""
    return kit.apply(quantizing.model(text, {"w": W, "u": U}), InferShapes())[0]


def best(score: np.ndarray) -> float:
    """The two largest of each four rows, over all columns."""
    groups = score.T.reshape(-1, 4)
    return sum(max(sum(g[list(c)]) for c in itertools.combinations(range(4), 2)) for g in groups)


def kept(score: str, w: np.ndarray, u: np.ndarray) -> float:
    """Of the second layer: the first reads no channels that anybody could order."""
    if score == "magnitude":
        return best(np.abs(u))
    seen = np.maximum(X.astype(np.float64) @ w, 0)
    energy = (seen**2).mean(0)[:, None] * u**2
    return best(energy / ((seen @ u) ** 2).mean(0).sum())


@pytest.mark.parametrize("score", ["magnitude", "energy"])
def test_what_is_kept_is_the_sum_that_is_promised(score: str) -> None:
    ctx = Context(data=CalibrationData.from_arrays({"x": X}), run=ort.execute)
    after, (report,) = kit.apply(model(), Permute(score=score, samples=200), ctx=ctx)
    second = next(n for n in after.graph if n.outputs[0].name == "y")
    first = next(n for n in after.graph if n.op_type == "MatMul")
    w, u = (np.asarray(edit.constant(n.inputs[1])) for n in (first, second))
    before = kept(score, W.astype(np.float64), U.astype(np.float64))
    assert report.metrics["kept before"] == pytest.approx(before, rel=1e-5)
    assert report.metrics["kept after"] == pytest.approx(
        kept(score, w.astype(np.float64), u.astype(np.float64)), rel=1e-5
    )
    assert report.metrics["kept after"] > 1.02 * before
    order = [int(np.flatnonzero((column[:, None] == W).all(0))[0]) for column in w.T]
    assert sorted(order) == list(range(16))
    np.testing.assert_array_equal(u, U[order])
