"""Bits by gradient norm: the norm and the distance against closed forms, and the bits that come of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.context import Context
from graphpress.job.natures import Kind, Nature
from graphpress.observe.data import CalibrationData
from graphpress.passes.allocate import gradient
from graphpress.passes.allocate.allocate import Allocate
from graphpress.passes.allocate.edges import Probe
from graphpress.passes.allocate.parts import Parts
from graphpress.passes.allocate.space import explore
from graphpress.passes.clean.infer_shapes import InferShapes
from tests import kit
from tests.passes import allocating
from tests.passes.quantizing import model, normal

BOOKS = tuple(f"w{b}a16-g256-points:place=uniform" for b in (2, 3, 4, 8))


def data(count: int, width: int) -> CalibrationData:
    return CalibrationData.from_arrays({"x": normal(count, width, seed=11)})


def guess(made: ir.Model, ctx: Context, nature: Nature, samples: int) -> dict[str, dict[str, float]]:
    found = Parts(explore(made, ctx.target, BOOKS, (), ()), ctx, {"y": nature})
    return gradient.estimate(found, ctx, Probe(made, ctx, samples), found.space.wanted())


def test_the_cost_is_the_norm_of_the_gradient_times_the_distance() -> None:
    """Of one layer under a softmax: E |d log p(c) / dW|^2 = E |x|^2 (1 - sum p^2), the temperature of 4 taken out."""
    w = normal(256, 8) / 16
    text = "g (float[N,256] x, float[256,8] w) => (float[N,8] y) { [a] y = MatMul(x, w) }"
    made = kit.apply(model(text, {"w": w}), InferShapes())[0]
    row = guess(made, allocating.context(data(512, 256)), Nature(Kind.CLASSES), 512)["a"]
    x = normal(512, 256, seed=11).astype(np.float64)
    z = x @ w.astype(np.float64) / 4
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    norm = np.sqrt(np.mean(np.square(x).sum(1) * (1 - np.square(p).sum(1)))) / 4
    low, high = (end(w.astype(np.float64), axis=0) for end in (np.min, np.max))
    for name, codes in zip(BOOKS, (4, 8, 16, 256), strict=True):
        step = (high - low) / (codes - 1)
        off = low + np.rint((w - low) / step) * step - w
        assert row[name] == pytest.approx(norm * np.linalg.norm(off), rel=0.1)  # 16 runs of 32 samples draw classes


def two() -> ir.Model:
    """Two layers of one size side by side, the second of which the outputs hear 64 times as loud."""
    weights = {"w": normal(128, 128), "v": normal(128, 128, seed=1), "loud": np.float32(64)}
    text = """g (float[N,128] x, float[128,128] w, float[128,128] v, float loud) => (float[N,128] y) {
      [soft] a = MatMul(x, w) [hard] b = MatMul(x, v) c = Mul(b, loud) y = Add(a, c) }"""
    return kit.apply(model(text, weights), InferShapes())[0]


def test_a_layer_of_a_greater_norm_gets_more_bits_of_the_same_size() -> None:
    """64 times the norm at the same size: the pair of formats of least cost, by brute force, is 8 and 2 bits, not 4."""
    ctx = replace(allocating.context(data(64, 128), deploy=False), outputs={"y": "values"})
    rows = guess(two(), ctx, Nature(Kind.VALUES), 64)
    assert rows["hard"][BOOKS[2]] / rows["soft"][BOOKS[2]] == pytest.approx(64, rel=0.1)
    bits = dict(zip(BOOKS, (2, 3, 4, 8), strict=True))
    pairs = [(a, b) for a in BOOKS for b in BOOKS if bits[a] + bits[b] <= 8 + 2]
    best = min(pairs, key=lambda p: rows["soft"][p[0]] + rows["hard"][p[1]])
    assert best == (BOOKS[0], BOOKS[3])


def test_a_budget_is_shared_by_it() -> None:
    ctx = allocating.context(data(64, 128), deploy=False)
    asked = Allocate(formats=BOOKS, sensitivity="gradient", max_size="0.26x", samples=64, measure=1, ties=())
    after, (report,) = kit.apply(two(), asked, ctx=ctx)
    used = {s.node: v.bits for s, v in report.plan.items()}
    assert used == {"hard": 8, "soft": 4}
    kit.run(after, {"x": normal(3, 128)})
