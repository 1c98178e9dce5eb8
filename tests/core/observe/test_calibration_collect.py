"""Observing models: against what ONNX Runtime gives, in branches, with fixed batches, interrupted and resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.backends import reference
from graphpress.errors import BadRequest, CalibrationError, StaleSite
from graphpress.graph import edit, text
from graphpress.observe import checkpoint
from graphpress.observe.collect import Calibration, collect
from graphpress.observe.data import CalibrationData
from graphpress.observe.observers import OBSERVERS, Range
from graphpress.runner import Runner
from graphpress.types import Scheme
from tests import kit

CHAIN = """g (float[N,6] x) => (float[N,4] y) <float[6,4] w = {W}> {
    a = Relu(x) b = MatMul(a, w) c = Sigmoid(b) y = Mul(b, c) }"""
NESTED = """g (float[N,3] x, bool flag) => (float[N,3] y) {
    m = ReduceMax<keepdims=0>(x)
    big = Greater(m, limit)
    y = If (flag) <
        then_branch = t () => (float[N,3] o) {
            p = Relu(x)
            o = If (big) <
                then_branch = tt () => (float[N,3] q) { r = Neg(p) q = Exp(r) },
                else_branch = te () => (float[N,3] q2) { q2 = Sigmoid(p) }> },
        else_branch = e () => (float[N,3] v) { u = Tanh(x) v = Sqrt(u) }>
    }"""


def chain() -> ir.Model:
    weights = ", ".join(f"{v:.3f}" for v in np.random.default_rng(1).normal(size=24))
    return kit.parse(CHAIN.replace("W}", weights + "}"))


def nested() -> ir.Model:
    return kit.parse(NESTED.replace("(float[N,3] y) {", "(float[N,3] y) <float limit = {1.0}> {", 1))


def samples(n: int = 20, width: int = 6) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, width)).astype(np.float32)


def want(*names: str, observer: str = "minmax") -> dict[str, Scheme]:
    return {name: Scheme("uint8", symmetric=False, observer=observer) for name in names}


def test_the_extremes_are_those_of_the_runtime_and_the_model_stays() -> None:
    model = chain()
    before = text.lines(model)
    found = collect(
        model, want("x", "a", "b", "c", "y", "w"), CalibrationData.from_arrays({"x": samples()}), reference.execute
    )
    assert text.lines(model) == before
    truth = reference.execute(model, ["a", "b", "c", "y"])({"x": samples()})
    truth |= {"x": samples(), "w": model.graph.initializers["w"].const_value.numpy()}  # type: ignore[union-attr]
    assert list(found) == ["x", "a", "b", "c", "y", "w"] and found.samples == 20 and not found.unobserved
    for name, array in truth.items():
        r = found[name]
        assert (r.minimum, r.maximum, r.count) == (array.min(), array.max(), array.size), name
        assert (r.lo, r.hi) == (min(r.minimum, 0), max(r.maximum, 0)) and r.saturated == 0
        assert sum(r.bins) == array.size and r.start <= r.minimum and r.maximum < r.start + r.width * len(r.bins)


@pytest.mark.parametrize("observer", OBSERVERS)
def test_the_batch_size_does_not_matter(observer: str) -> None:
    # Elementwise, so that the runtime's own arithmetic does not depend on the batch either.
    model = kit.parse("g (float[N,6] x) => (float[N,6] y) { a = Relu(x) y = Neg(a) }")
    data = CalibrationData.from_arrays({"x": samples()})
    runs = [
        collect(model, want("x", "a", "y", observer=observer), data, reference.execute, batch_size=n)
        for n in (1, 7, None)
    ]
    assert runs[0].ranges == runs[1].ranges == runs[2].ranges


def test_only_what_was_asked_for_leaves_the_runtime_and_batches_fit_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[str]] = []
    sizes: list[int] = []

    def execute(model: ir.Model, outputs: Sequence[str] | None = None) -> Runner:
        asked.append(list(outputs or ()))
        return Spy(reference.execute(model, outputs), lambda feeds: sizes.append(len(feeds["x"])))

    monkeypatch.setattr("graphpress.observe.collect.WORKERS", 2)
    monkeypatch.setattr("graphpress.observe.collect.BUDGET", 600)  # three batches: a sample is 24 + 16 bytes
    collect(chain(), want("b", "x"), CalibrationData.from_arrays({"x": samples()}), execute)
    assert asked == [["b"]] and sizes[0] == 1 and sorted(sizes[1:]) == [2, *[3] * 6]


class Spy:
    """A runner that tells what it is fed."""

    def __init__(self, inner: Runner, tell: Callable[[Mapping[str, np.ndarray]], object]) -> None:
        self.inner, self.tell = inner, tell
        self.input_names, self.output_names = inner.input_names, inner.output_names

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.tell(feeds)
        return self.inner(feeds)


def test_values_in_nested_branches_are_seen_whenever_their_branch_runs() -> None:
    x = samples(12, 3)
    flags = np.arange(12) % 3 > 0
    data = CalibrationData.from_arrays({"x": x[:, None], "flag": flags})
    found = collect(nested(), want("p", "r", "q2", "u", "o", "y"), data, reference.execute)
    big = x.max(axis=1) > 1
    relu = np.maximum(x[flags], 0)
    assert not found.unobserved and found.samples == 12
    assert (found["p"].count, found["p"].maximum) == (relu.size, relu.max())
    assert found["r"].count == 3 * (flags & big).sum() and found["r"].minimum == -x[flags & big].max()
    assert found["q2"].count == 3 * (flags & ~big).sum() and found["u"].count == 3 * (~flags).sum()
    np.testing.assert_allclose(found["u"].maximum, np.tanh(x[~flags]).max(), rtol=1e-6)
    assert found["y"].count == 36 and found["o"].count == 3 * flags.sum()


def test_a_branch_that_never_runs_is_reported_and_bodies_that_repeat_are_seen() -> None:
    found = collect(
        nested(), want("u", "p"), CalibrationData.from_arrays({"x": samples(4, 3), "flag": np.asarray(True)}),
        reference.execute,
    )  # fmt: skip
    assert list(found) == ["p"] and "never ran" in found.unobserved["u"]
    loop = kit.parse("""g (float[N,3] x, int64 n) => (float[N,3] y) <bool go = {1}> {
        y = Loop (n, go, x) <body = b (int64 i, bool c, float[N,3] s) => (bool d, float[N,3] t) {
            d = Identity(c) h = Relu(s) t = Neg(h) }> }""")
    data = CalibrationData.from_arrays({"x": samples(4, 3), "n": np.asarray(2)})
    found = collect(loop, want("h", "y"), data, reference.execute)
    assert not found.unobserved and found["y"].count == 12 and found["h"].count == 24


def test_what_is_no_float_is_reported_and_what_is_not_there_refused() -> None:
    model = kit.parse("g (float[N,3] x) => (float[N,3] y) { s = Shape(x) y = Reshape(x, s) }")
    data = CalibrationData.from_arrays({"x": samples(4, 3)})
    found = collect(model, want("s", "y"), data, reference.execute)
    assert list(found) == ["y"] and found.unobserved == {"s": "its type is INT64"}
    with pytest.raises(StaleSite, match=r"value 'z': the model has no such value\. Known: s, x, y"):
        collect(model, want("z"), data, reference.execute)
    with pytest.raises(CalibrationError, match="input 'x': has shape"):
        collect(model, want("y"), CalibrationData.from_arrays({"x": samples()}), reference.execute)
    assert collect(model, {}, data, reference.execute) == Calibration()


def test_values_inside_functions_are_reported() -> None:
    model = kit.parse("""<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
        g (float[N,3] x) => (float[N,3] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 21]> f (a) => (b) { h = Relu(a) b = Neg(h) }""")
    found = collect(model, want("h", "y"), CalibrationData.from_arrays({"x": samples(4, 3)}), reference.execute)
    assert list(found) == ["y"] and found.unobserved == {"h": "it is inside the function local::f"}


def test_empty_tensors_and_dynamic_axes(tmp_path: Path) -> None:
    for i, width in enumerate((0, 4, 2)):
        np.savez(tmp_path / f"{i}.npz", x=samples(3, width))
    model = kit.parse("g (float[N,M] x) => (float[N,M] y) { y = Neg(x) }")
    found = collect(model, want("y"), CalibrationData.load(tmp_path), reference.execute)
    assert found["y"].count == 18 and found.samples == 9


def test_fixed_batches_and_states() -> None:
    model = kit.parse("""g (float[1,3] x, float[2,1,3] h, float[1,2] idle) => (float[1,3] y)
        <int64[1] axis = {0}> { s = ReduceSum<keepdims=0>(h, axis) y = Add(x, s) }""")
    x, h = samples(5, 3), np.random.default_rng(2).normal(size=(5, 2, 1, 3)).astype(np.float32)
    found = collect(model, want("y"), CalibrationData.from_arrays({"x": x, "h": h}), reference.execute)
    y = x + h.sum(axis=1)[:, 0]
    assert found.samples == 5 and found["y"].maximum == pytest.approx(y.max(), rel=1e-6)


def test_nan_is_named_not_hidden() -> None:
    model = kit.parse("g (float[N,3] x) => (float[N,3] y) { r = Sqrt(x) y = Mul(r, r) z = Sub(x, x) o = Mul(z, z) }")
    found = collect(model, want("r", "z"), CalibrationData.from_arrays({"x": samples(8, 3)}), reference.execute)
    assert found["r"].nonfinite == (samples(8, 3) < 0).sum() and not found["r"].dead and found["z"].dead


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("observer", OBSERVERS)
def test_an_interrupted_run_goes_on_to_the_same_result(
    observer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_INTERVAL", 0.0)
    data, values, state = (
        CalibrationData.from_arrays({"x": samples(40)}),
        want("x", "b", "y", observer=observer),
        tmp_path / "s.npz",
    )
    whole = collect(chain(), values, data, reference.execute, batch_size=3)
    runs: list[int] = []

    def execute(limit: int) -> Callable[..., Runner]:
        def count(feeds: object) -> None:
            runs.append(1)
            if len(runs) == limit:
                raise Interrupted

        return lambda model, outputs=None: Spy(reference.execute(model, outputs), count)

    with pytest.raises(Interrupted):
        collect(chain(), values, data, execute(8), batch_size=3, state=state)
    runs.clear()
    resumed = collect(chain(), values, data, execute(99), state=state)
    assert len(runs) == 7 and resumed == whole and resumed.ranges["b"].bins == whole.ranges["b"].bins
    runs.clear()
    assert collect(chain(), values, data, execute(99), state=state) == whole and not runs
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


def test_a_state_of_another_job_is_not_used_and_another_file_not_overwritten(tmp_path: Path) -> None:
    state = tmp_path / "s.npz"
    data = CalibrationData.from_arrays({"x": samples()})
    collect(chain(), want("b"), data, reference.execute, state=state)
    other = chain()
    edit.find(other, "Relu_0").op_type = "Neg"
    for model, values, of in (
        (other, want("b"), data), (chain(), want("b", observer="mse"), data),
        (chain(), want("b"), CalibrationData.from_arrays({"x": samples() * 2})),
    ):  # fmt: skip
        fresh = collect(model, values, of, reference.execute)
        assert collect(model, values, of, reference.execute, state=state) == fresh
    changed = chain()
    changed.graph.initializers["w"].const_value = ir.tensor(np.ones((6, 4), np.float32), name="w")
    assert collect(changed, want("b"), data, reference.execute, state=state)["b"].minimum >= 0
    state.write_text("my notes")
    with pytest.raises(BadRequest, match=r"s\.npz: the file is no calibration state\. Delete it or name another"):
        collect(chain(), want("b"), data, reference.execute, state=state)
    np.savez(state, x=np.ones(3))
    with pytest.raises(BadRequest, match="no calibration state"):
        collect(chain(), want("b"), data, reference.execute, state=state)
    assert "x" in np.load(state)


def test_ranges_are_values() -> None:
    a = Range(-1, 1, -2, 2, 10, bins=(1, 2))
    assert a == Range(-1, 1, -2, 2, 10, bins=(1, 2)) and hash(a) == hash(Range(-1, 1, -2, 2, 10, bins=(1, 2)))


def test_every_value_of_the_voice_detector_is_seen_inside_its_branches(zoo: Path) -> None:
    model = ir.load(zoo / "speech/silero_vad/silero_vad.onnx")
    data = CalibrationData.from_arrays({
        "input": np.random.default_rng(0).normal(0, 0.1, (3, 576)).astype(np.float32),
        "state": np.zeros((3, 2, 1, 128), np.float32), "sr": np.asarray(16000),
    })  # fmt: skip
    convs = [n for n in edit.nodes(model) if n.op_type in ("Conv", "LSTM")]
    names = [n.outputs[0].name or "" for n in convs]
    found = collect(model, want(*names, observer="mse"), data, reference.execute)
    assert found.samples == 3 and set(found) | set(found.unobserved) == set(names)
    taken = [n for n in names if "then_branch" in n.split("/")[0]]
    assert set(found) <= set(taken) and len(found) >= 6
    assert all("never ran" in why for why in found.unobserved.values())
    assert all(r.maximum > r.minimum for r in found.ranges.values())
