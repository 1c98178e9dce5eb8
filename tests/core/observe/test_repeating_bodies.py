"""Values of bodies of Loop and Scan: every iteration of every sample is seen, against a loop in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from graphpress.backends import ort, reference
from graphpress.observe.data import CalibrationData
from graphpress.observe.expose import Exposed
from graphpress.observe.inner import InnerValues
from graphpress.observe.moments import collect_moments
from graphpress.runner import Executor
from tests import kit

RNG = np.random.default_rng(5)
W = RNG.normal(size=(3, 3)).astype(np.float32)
TEXT = "{" + ", ".join(repr(float(w)) for w in W.ravel()) + "}"
LOOP = f"""g (float[N,3] x, int64 n) => (float[N,3] y) <bool go = {{1}}, float[3,3] w = {TEXT}> {{
    y = Loop (n, go, x) <body = b (int64 i, bool c, float[N,3] s) => (bool d, float[N,3] t) {{
        d = Identity(c) h = MatMul(s, w) t = Tanh(h) }}> }}"""
SCAN = f"""g (float[3] s0, float[T,3] x) => (float[3] y, float[T,3] z) <float[3,3] w = {TEXT}> {{
    y, z = Scan <num_scan_inputs = 1, scan_output_axes = [0],
            body = b (float[3] s, float[3] u) => (float[3] t, float[3] o) {{
        m = MatMul(u, w) a = Add(m, s) t = Tanh(a) o = Identity(t) }}> (s0, x) }}"""


@pytest.mark.parametrize("execute", [reference.execute, ort.execute])
def test_a_loop_gives_what_every_iteration_made(execute: Executor) -> None:
    x, s, h = RNG.normal(size=(4, 3)).astype(np.float32), [], []
    state = x
    for _ in range(3):
        s.append(state)
        h.append(state @ W)
        state = np.tanh(h[-1])
    feeds = {"x": x, "n": np.asarray(3)}
    inner = InnerValues.of(kit.parse(LOOP), ["s", "h"], execute, trial=[feeds])
    found = inner(feeds)
    assert not inner.unobserved
    np.testing.assert_allclose(found["s"], np.concatenate(s), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["h"], np.concatenate(h), rtol=1e-5, atol=1e-6)
    assert InnerValues.of(kit.parse(LOOP), ["h"], execute).unobserved == {
        "h": "it is in the body of Loop 'Loop_0', which repeats"
    }


def test_a_scan_gives_what_every_step_made_also_where_axes_of_its_outputs_are_given() -> None:
    feeds = {"s0": np.zeros(3, np.float32), "x": RNG.normal(size=(5, 3)).astype(np.float32)}
    inner = InnerValues.of(kit.parse(SCAN), ["m", "u"], ort.execute, trial=[feeds])
    found = inner(feeds)
    assert not inner.unobserved
    np.testing.assert_allclose(found["m"], feeds["x"] @ W, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["u"], feeds["x"])


def test_moments_count_every_iteration() -> None:
    x = RNG.normal(size=(6, 3)).astype(np.float32)
    data = CalibrationData.from_arrays({"x": x, "n": np.asarray(2)})
    found = collect_moments(kit.parse(LOOP), ["MatMul_2"], data, ort.execute)["MatMul_2"]
    rows = np.concatenate([x, np.tanh(x @ W)]).astype(np.float64)
    assert found.count == 12
    np.testing.assert_allclose(found.matrix[0], rows.T @ rows / 12, rtol=1e-5, atol=1e-6)


def test_a_value_that_grows_with_each_iteration_is_left_out_and_others_are_not() -> None:
    model = kit.parse("""g (float[N] x, int64 n) => (float[M] y) <bool go = {1}> {
        y = Loop (n, go, x) <body = b (int64 i, bool c, float[K] s) => (bool d, float[L] t) {
            d = Identity(c) r = ReduceMax <keepdims = 0> (s) t = Concat <axis = 0> (s, s) }> }""")
    feeds = {"x": np.array([1.0, 2.0], np.float32), "n": np.asarray(3)}
    inner = InnerValues.of(model, ["t", "r"], ort.execute, trial=[feeds])
    np.testing.assert_array_equal(inner(feeds)["r"], [2.0, 2.0, 2.0])
    assert list(inner.unobserved) == ["t"] and "repeats" in inner.unobserved["t"]


def test_a_loop_within_a_loop_and_a_branch_within_one() -> None:
    model = kit.parse("""g (float[2] x, int64 n, int64 m) => (float[2] y) <bool go = {1}, float one = {1.0}> {
        y = Loop (n, go, x) <body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t) {
            d = Identity(c)
            p = Loop (m, go, s) <body = e (int64 j, bool f, float[2] q) => (bool k, float[2] v) {
                k = Identity(f) v = Add(q, one) }>
            t = If (c) <then_branch = a () => (float[2] o) { o = Neg(p) },
                else_branch = z () => (float[2] l) { l = Identity(p) }> }> }""")
    feeds = {"x": np.array([0.0, 5.0], np.float32), "n": np.asarray(2), "m": np.asarray(3)}
    inner = InnerValues.of(model, ["v", "o"], ort.execute, trial=[feeds])
    first, second = feeds["x"] + [[1], [2], [3]], -(feeds["x"] + 3) + [[1], [2], [3]]
    np.testing.assert_array_equal(inner(feeds)["v"], np.concatenate([first, second]))
    assert inner.unobserved == {"o": "it is in a branch that not every iteration of Loop 'Loop_0' takes"}


@pytest.mark.parametrize("shape", [(0,), (0, 0), (0, 0, 0), (0, 4, 0), (0, 4, 3)])
def test_what_a_loop_that_never_ran_gives_is_empty(shape: tuple[int, ...]) -> None:
    """Whatever the runtime makes of axes that it does not know."""
    seen = Exposed(stacked={"h": 1}).seen("h", np.empty(shape, np.float32))
    assert seen.size == 0 and seen.ndim == max(len(shape) - 1, min(len(shape), 2))


def test_a_loop_that_never_runs_leaves_its_layers_without_a_range() -> None:
    data = CalibrationData.from_arrays({"x": RNG.normal(size=(6, 3)).astype(np.float32), "n": np.asarray(0)})
    found = collect_moments(kit.parse(LOOP), ["MatMul_2"], data, ort.execute)
    assert not found and "never ran" in found.unobserved["MatMul_2"]
