"""Blocks whose tokens a router chooses: no ACM, with the reason; training goes on with those that have all tokens."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.passes.acm.acm import Acm
from graphpress.passes.clean.infer_shapes import InferShapes
from graphpress.passes.recover.train_acm import TrainAcm
from tests import kit
from tests.passes.acm.test_acm_train import context
from tests.passes.quantizing import model, normal


def routed(limit: float, projection: bool = False) -> ir.Model:
    """A plain block, and one that only tokens get whose first channel is above ``limit``."""
    weights = {
        "w1": normal(8, 12), "w2": normal(12, 8, seed=1) / 4, "e1": normal(8, 12, seed=2),
        "e2": normal(12, 8, seed=3) / 4, "es": normal(8, 8, seed=4), "limit": np.float32(limit), "first": np.int64(0),
    }  # fmt: skip
    expert = "g = MatMul(f, es) o = Add(f, g)"
    if not projection:
        expert = "d = MatMul(f, e1) e = Relu(d) g = MatMul(e, e2) o = Add(f, g)"
    weights = {n: a for n, a in weights.items() if f"{n})" in expert or n[0] != "e"}
    shapes = ", ".join(f"{'int64' if n == 'first' else 'float'}{list(a.shape) or ''} {n}" for n, a in weights.items())
    text = f"""g (float[N,5,8] x, {shapes}) => (float[N,5,8] y) {{
      h = MatMul(x, w1) a = Relu(h) b = MatMul(a, w2) r = Add(x, b)
      s = Gather<axis = -1>(r, first) t = Greater(s, limit) i = NonZero(t) j = Transpose(i) f = GatherND(r, j)
      {expert} y = ScatterND(r, j, o) }}"""
    return kit.apply(model(text, weights), InferShapes())[0]


@pytest.mark.parametrize("projection", [False, True])
def test_a_layer_of_an_expert_is_left_alone_with_the_reason(projection: bool) -> None:
    before = routed(0.0, projection)
    _, (report,) = kit.apply(before, Acm(projections=projection), ctx=context(before))
    assert report.changed == 1
    (skip,) = report.skips
    assert skip.where == next(n.name for n in before.graph if n.outputs[0].name == "g")
    assert "how many tokens it gets is decided by the data (NonZero)" in skip.why


def test_an_expert_without_tokens_does_not_stop_training() -> None:
    """Nobody's first channel is above the limit: the loss of what the expert learns would be no number."""
    before = routed(1e9)
    short = TrainAcm(learner_steps=2, gate_steps=0, steps=0, batch=16, budgets=(0.5,), samples=2)
    after, (_, report) = kit.apply(before, Acm(learners=2), short, ctx=context(before))
    assert report.changed == 1
    x = normal(4, 5, 8, seed=5)
    assert np.isfinite(kit.run(after, {"x": x, "budget": np.array(0.5, np.float32)})["y"]).all()
