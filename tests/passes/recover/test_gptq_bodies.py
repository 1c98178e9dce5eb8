"""GPTQ and static ranges in bodies of Loop and Scan: every iteration counts, layers of a body in their order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress.contracts import PassReport
from graphpress.observe.data import CalibrationData
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.quantizers import obs
from graphpress.passes.quantizers.quantizer import QParams
from graphpress.passes.recover.rounding import grids
from graphpress.passes.recover.rounding.gptq import Gptq
from graphpress.passes.recover.rounding.layer_by_layer import split
from tests import kit
from tests.passes.quantizing import context, model, normal
from tests.passes.recover.test_gptq import CHANNELS, Channels, correlated, gptq, weights

LOOP = """
g (float[N, 32] x, float[32, 32] a, float[32, 32] b, float[32, 8] c) => (float[N, 8] y) <int64 n = {3}, bool go = {1}> {
    z = Loop (n, go, x) <body = body (int64 i, bool f, float[N, 32] s) => (bool k, float[N, 32] t) {
        k = Identity(f)
        h = MatMul(s, a)
        r = Relu(h)
        t = MatMul(r, b)
    }>
    y = MatMul(z, c)
}
"""


def loop() -> ir.Model:
    return model(LOOP, {"a": normal(32, 32) / 4, "b": normal(32, 32, seed=1) / 4, "c": normal(32, 8, seed=2)})


def test_each_layer_of_a_loop_is_the_reference_on_all_iterations_of_what_is_rounded_before_it() -> None:
    x, options = correlated(64), Gptq(observer="keep", samples=64, act_order=False)
    start, _ = kit.apply(loop(), CHANNELS, ctx=context(None, None))
    made, _ = gptq(start, x, options)
    fit = split(CalibrationData.from_arrays({"x": x}).bind(start).take(64, 0), 0)[0]
    inputs = np.concatenate([f["x"] for f in fit.batches(100)]).astype(np.float64)
    before, found = {q.name: q for q in grids.quantized_layers(start, PassReport())}, weights(made)
    first, second, last = (name for name, q in before.items())
    if before[first].weight().shape[0] == 8:  # the order of the main graph comes before that of its bodies
        last, first, second = first, second, last

    def states(a: np.ndarray, b: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
        seen, hidden, state = [], [], inputs
        for _ in range(3):
            seen.append(state)
            hidden.append(np.maximum(state @ a.T, 0))
            state = hidden[-1] @ b.T
        return seen, hidden, state

    a, b = before[first], before[second]
    seen = np.concatenate(states(a.rounded(a.params()), b.rounded(b.params()))[0])
    expected = obs.solve(a.weight(), seen.T @ seen, Channels(a.params().scale))
    assert np.isclose(found[first], expected, rtol=1e-5).mean() > 0.99  # a tie of rounding may fall either way
    hidden = np.concatenate(states(found[first], b.rounded(b.params()))[1])
    expected = obs.solve(b.weight(), hidden.T @ hidden, Channels(b.params().scale))
    assert np.isclose(found[second], expected, rtol=1e-5).mean() > 0.99
    state = states(found[first], found[second])[2]
    expected = obs.solve(before[last].weight(), state.T @ state, Channels(before[last].params().scale))
    assert np.isclose(found[last], expected, rtol=1e-5).mean() > 0.99


def test_an_interrupted_run_over_a_loop_ends_in_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Gptq(state=str(tmp_path / "state"), samples=32)
    whole, _ = gptq(loop(), correlated(32), CHANNELS, replace(options, state=None))
    settle = grids.QuantizedLayer.write
    calls = []

    def twice(self: grids.QuantizedLayer, weight: np.ndarray, params: QParams) -> None:
        calls.append(self.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        settle(self, weight, params)

    with monkeypatch.context() as patch:
        patch.setattr(grids.QuantizedLayer, "write", twice)
        with pytest.raises(KeyboardInterrupt):
            gptq(loop(), correlated(32), CHANNELS, options)
    again, _ = gptq(loop(), correlated(32), CHANNELS, options)
    assert {n: w.tobytes() for n, w in weights(again).items()} == {n: w.tobytes() for n, w in weights(whole).items()}


def test_static_ranges_of_a_loop_hold_what_its_later_iterations_give() -> None:
    text = """g (float[N, 8] x, float[8, 8] a) => (float[N, 8] y) <int64 n = {4}, bool go = {1}> {
        y = Loop (n, go, x) <body = body (int64 i, bool f, float[N, 8] s) => (bool k, float[N, 8] t) {
            k = Identity(f) t = MatMul(s, a) }> }"""
    made = model(text, {"a": 2 * np.eye(8, dtype=np.float32)})
    x = normal(64, 8)
    after, report = kit.apply(made, Quantize(), ctx=context({"x": x}))
    assert not report[-1].skips
    plan = report[-1].plan
    assert plan is not None and not any(scheme.dynamic for scheme in plan.values())
    got = kit.run(after, {"x": x})["y"]
    step = (
        8 * (x.max() - x.min()) / 255
    )  # of what enters the last iteration; half of it comes in each time, and doubles
    assert np.abs(got - 16 * x).max() <= 1.02 * step * (16 + 8 + 4 + 2) / 2


@pytest.mark.parametrize("recipe", ["w8a8", "w4a16-gptq"])
def test_recipes_reach_into_a_scan(recipe: str) -> None:
    text = """g (float[T, 16] x, float[16, 16] a, float[16, 16] b) => (float[T, 16] y) <float[16] s0 = {%s}> {
        last, y = Scan <num_scan_inputs = 1, body = body (float[16] s, float[16] u) => (float[16] t, float[16] o) {
            h = MatMul(s, a) m = MatMul(u, b) e = Add(h, m) t = Tanh(e) o = Identity(t) }> (s0, x) }"""
    made = model(text % ", ".join(["0"] * 16), {"a": normal(16, 16) / 4, "b": normal(16, 16, seed=1) / 4})
    data = CalibrationData.from_batches([{"x": normal(20, 16, seed=i)} for i in range(8)])
    _, report = gp.compile(made, recipe, data, gate=False)
    assert not [s for s in report.skips if "body" in s.why]
