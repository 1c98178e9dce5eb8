"""SmoothQuant on few samples, and by the outputs of the whole model: no worse than without it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.passes.clean.infer_shapes import InferShapes
from graphpress.passes.equalize.rehearsal import Rehearsal, Rounded, rehearsable, written
from graphpress.passes.equalize.smooth import Smooth
from graphpress.passes.quantize.quantize import Quantize
from graphpress.types import PER_TOKEN, Scheme, per_channel
from tests import kit
from tests.passes.quantizing import context, model, normal

SCHEMES = Scheme("uint8", symmetric=False, observer="minmax"), Scheme("int8", per_channel(0))


def network(loud: float = 1.0) -> ir.Model:
    """Three layers; hidden channel 3 is ``loud`` times the others and is read with as much less."""
    weights = {"a": normal(16, 32), "b": normal(32, 16, seed=1), "c": normal(16, 8, seed=2)}
    weights["a"][:, 3] *= loud
    weights["b"][3] /= loud
    shapes = ", ".join(f"float{list(w.shape)} {n}" for n, w in weights.items())
    text = f"""g (float[N,16] x, {shapes}) => (float[N,8] y) {{
      [one] h = MatMul(x, a) r = Relu(h) [two] m = MatMul(r, b) [three] y = MatMul(m, c) }}"""
    return kit.apply(model(text, weights), InferShapes())[0]


def lost(made: ir.Model, x: np.ndarray, *passes: object) -> float:
    """Relative squared error on samples that nobody saw."""
    fresh = {"x": normal(512, 16, seed=99)}
    after, _ = kit.apply(made, *passes, ctx=context({"x": x}, None))
    want, got = (kit.run(m, fresh)["y"].astype(np.float64) for m in (made, after))
    return float(np.square(got - want).sum() / np.square(want).sum())


@pytest.mark.parametrize("samples", [2, 8, 32])
@pytest.mark.parametrize("seed", [5, 6])
def test_few_samples_without_outliers_lose_no_more_than_without(samples: int, seed: int) -> None:
    """Within 0.3 dB (their maxima say little of the next, so factors from them cost up to 11 dB)."""
    made, x, options = network(), normal(samples, 16, seed=seed), Quantize(observer="mse")
    assert lost(made, x, Smooth(), options) <= 10**0.03 * lost(made, x, options)


def wide(rng: np.random.Generator, tails: float, noise: str, channels: int = 168) -> tuple[ir.Model, list[np.ndarray]]:
    """One layer behind a gain; 16 samples for it, and 500 fresh ones: means of channels, and tails that hide in 16."""
    text = f"""g (float[N,{channels}] x, float[{channels}] g, float[{channels},8] b) => (float[N,8] y) {{
      h = Neg(x) r = Mul(h, g) y = MatMul(r, b) }}"""
    made = model(text, {"g": np.ones(channels), "b": normal(channels, 8, seed=1)})
    mean, x = rng.normal(size=channels), list[np.ndarray]()
    for count in (16, 500):
        size = (count, channels)
        drawn = rng.standard_t(4, size=size) if noise == "t" else rng.laplace(size=size)
        x.append((mean + tails * drawn).astype(np.float32))
    return kit.apply(made, InferShapes())[0], x


@pytest.mark.parametrize(
    ("noise", "tails", "seed"), [("t", 0.1, 2), ("t", 0.15, 0), ("laplace", 0.2, 1), ("laplace", 0.2, 2)]
)
def test_tails_that_few_samples_do_not_show_cost_no_more_than_without(noise: str, tails: float, seed: int) -> None:
    """Within 0.3 dB on fresh samples; factors that gain on all held out parts cost 2.2 to 3.2 dB here."""
    made, (x, fresh) = wide(np.random.default_rng(seed), tails, noise)
    want = kit.run(made, {"x": fresh})["y"].astype(np.float64)
    error = []
    for passes in ((Quantize(observer="mse"),), (Smooth(), Quantize(observer="mse"))):
        after, _ = kit.apply(made, *passes, ctx=context({"x": x}, None))
        error.append(np.square(kit.run(after, {"x": fresh})["y"] - want).sum())
    assert error[1] <= 10**0.03 * error[0]


def test_a_loud_channel_is_made_quiet_from_few_samples_too() -> None:
    made, x, options = network(100.0), normal(16, 16, seed=5), Quantize(observer="mse")
    assert lost(made, x, Smooth(), options) < 0.5 * lost(made, x, options)


def test_factors_go_where_the_outputs_gain_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two errors of the outputs, without factors and with: below 0.8 of the first, and below it in each part."""
    made, x = network(100.0), normal(16, 16, seed=5)
    cases = (
        ([[1.0, 0.79]], True), ([[1.0, 0.81]], False), ([[0.0, 0.0]], False), ([[1, 1.01], [9, 1]], False),
        ([[1, 0.99], [9, 1]], True),
    )  # fmt: skip
    for errors, kept in cases:
        monkeypatch.setattr(Rehearsal, "errors", lambda *_, errors=errors: np.array(errors))
        after, (report,) = kit.apply(made, Smooth(), ctx=context({"x": x}, None))
        assert bool(report.changed) == kept
        assert (report.metrics.get("places with no factors", 0) == 2) == (not kept)
        if not kept:
            kit.assert_same_structure(after, made)


@pytest.mark.parametrize(("beside", "kept"), [(1e-3, True), (10.0, False)])
def test_factors_go_where_their_gain_drowns_in_what_others_lose(beside: float, kept: bool) -> None:
    """A loud channel that factors make quiet, and beside it a layer behind exp(2x), which 8 bits hold badly."""
    weights = {"a": normal(16, 32), "b": normal(32, 8, seed=1), "c": normal(16, 8, seed=2) * beside}
    weights["a"][:, 3] *= 100
    weights["b"][3] /= 100
    shapes = ", ".join(f"float{list(w.shape)} {n}" for n, w in weights.items())
    text = f"""g (float[N,16] x, {shapes}) => (float[N,8] y) {{
      h = MatMul(x, a) r = Relu(h) m = MatMul(r, b) t = Add(x, x) e = Exp(t) o = MatMul(e, c) y = Add(m, o) }}"""
    made, x = kit.apply(model(text, weights), InferShapes())[0], normal(64, 16, seed=5)
    after, (report,) = kit.apply(made, Smooth(), ctx=context({"x": x}, None))
    assert bool(report.changed) == kept
    without, with_ = map(float, str(report.metrics["error of the outputs without factors, with"]).split(", "))
    whole = float(str(report.metrics["likewise when all is quantized"]).split(", ")[0])
    assert with_ < 0.5 * without  # for themselves they gain
    assert (without - with_ > 0.1 * whole) == kept
    if not kept:
        kit.assert_same_structure(after, made)


def test_factors_go_where_the_quantized_model_loses_more_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of layers may cancel: what is less alone may be more in the sum. Of a model with factors it is asked."""
    made, x = network(100.0), normal(16, 16, seed=5)
    asked: list[ir.Model] = []
    monkeypatch.setattr(Rehearsal, "errors", lambda *_: np.array([[0.2, 0.1]]))
    for wholes, kept in (([0.5, 0.49], True), ([0.5, 0.51], False), ([1.5, 0.1], False)):
        left = iter(wholes)
        monkeypatch.setattr(
            Rehearsal, "whole", lambda _, form, *__, left=left: asked.append(form.clone()) or next(left)
        )
        after, (report,) = kit.apply(made, Smooth(), ctx=context({"x": x}, None))
        assert bool(report.changed) == kept
        kit.assert_same_structure(asked[-2], made)
        if kept:
            kit.assert_same_structure(asked[-1], after)


def test_what_all_of_it_loses_is_what_the_quantized_model_loses() -> None:
    made, x, options = network(100.0), normal(40, 16, seed=5), Quantize(observer="mse")
    ctx = context({"x": x}, None)
    rehearsal = Rehearsal(made, SCHEMES, ctx.data.bind(made), ctx.run, batch_size=8, batches=4)
    few = {"x": x[:32]}
    after, _ = kit.apply(made, options, ctx=context(few, None))
    want, got = (kit.run(m, few)["y"].astype(np.float64) for m in (made, after))
    mine = [0, 1, 14, 15, 20, 21, 26, 27]  # of each eight the quarter 0, which is the last of the next eight
    wanted = np.square(got - want)[mine].sum() / np.square(want)[mine].sum()
    before = made.clone()
    assert rehearsal.whole(made, options, ctx, [0]) == pytest.approx(wanted, rel=1e-3)
    kit.assert_same_structure(made, before)


def test_the_rehearsal_is_the_model_on_its_grids() -> None:
    """By hand in float64: rows over factors on 256 steps, columns times factors on 255 for each output."""
    made, x = network(), normal(40, 16, seed=5).astype(np.float64)
    a, b, c = (made.graph.initializers[n].const_value.numpy().astype(np.float64) for n in "abc")
    r = np.maximum(x @ a, 0)
    factor = np.linspace(0.5, 2, 32)
    s = r / factor
    step = s.max() / 255
    q = np.rint(s / step) * step * factor
    w = b * factor[:, None]
    grid = np.abs(w).max(0) / 127
    held = np.clip(np.rint(w / grid), -128, 127) * grid / factor[:, None]
    plan = [Rounded(("two",), r.astype(np.float32), factor)]
    got = kit.run(written(made, plan, SCHEMES), {"x": x.astype(np.float32)})["y"]
    wanted, exact = q @ held @ c, r @ b @ c
    assert np.abs(got - wanted).max() < 0.02 * np.abs(wanted - exact).max()
    ctx = context({"x": x.astype(np.float32)}, None)
    rehearsal = Rehearsal(made, SCHEMES, ctx.data.bind(made), ctx.run, batch_size=8, batches=3)
    ((none, error),) = rehearsal.errors({1: [[], plan]})
    mine = [2, 3, 8, 9, 22, 23]  # the second quarter of the first eight, the first of the next, the last of those
    assert none == 0
    assert error == pytest.approx(np.square(wanted - exact)[mine].sum() / np.square(exact)[mine].sum(), rel=0.02)


def test_only_the_samples_of_a_part_are_run() -> None:
    """Of batches that need no fixed size; the float model once for each part."""
    made, x = network(), normal(40, 16, seed=5)
    ctx, fed = context({"x": x}, None), list[np.ndarray]()

    def counting(model: ir.Model) -> object:
        run = ctx.run(model)
        return lambda feeds: fed.append(feeds["x"]) or run(feeds)

    rehearsal = Rehearsal(made, SCHEMES, ctx.data.bind(made), counting, batch_size=8, batches=2)
    rehearsal.errors({1: [[], []]})
    wanted = x[[2, 3, 8, 9]]  # the second quarter of the first eight, the first of the next
    assert len(fed) == 6
    for start in (0, 2, 4):
        np.testing.assert_array_equal(np.concatenate(fed[start : start + 2]), wanted)


def test_of_a_fixed_batch_all_samples_are_run_and_those_of_a_part_count() -> None:
    made, x = network(), normal(16, 16, seed=5)
    ctx = context({"x": x}, None)
    free = Rehearsal(made, SCHEMES, ctx.data.bind(made), ctx.run, batch_size=8, batches=2)
    plan = [Rounded(("two",), np.abs(normal(9, 32)), np.linspace(0.5, 2, 32))]
    wanted = free.errors({p: [plan] for p in range(4)})
    fixed = made.clone()
    fixed.graph.inputs[0].shape = ir.Shape([8, 16])
    fixed.graph.outputs[0].shape = ir.Shape([8, 8])
    rehearsal = Rehearsal(fixed, SCHEMES, ctx.data.bind(fixed), ctx.run, batch_size=3, batches=2)
    np.testing.assert_allclose(rehearsal.errors({p: [plan] for p in range(4)}), wanted, rtol=1e-4)
    assert len(np.unique(wanted)) == 4


def test_a_convolution_is_rehearsed_on_its_grids() -> None:
    """By hand in float64: as above, of a map, with a range for each output over channels and taps."""
    text = """g (float[N,4,6,6] x, float[5,4,3,3] w) => (float[N,5,4,4] y) { h = Sigmoid(x) [one] y = Conv(h, w) }"""
    made = kit.apply(model(text, {"w": normal(5, 4, 3, 3)}), InferShapes())[0]
    x, factor = normal(6, 4, 6, 6, seed=5).astype(np.float64), np.array([0.5, 1, 2, 4])[:, None, None]
    h, w = 1 / (1 + np.exp(-x)), made.graph.initializers["w"].const_value.numpy().astype(np.float64)
    step = (h / factor).max() / 255
    q = np.clip(np.rint(h / factor / step), 0, 255) * step * factor
    grid = np.abs(w * factor).max(axis=(1, 2, 3), keepdims=True) / 127
    held = np.rint(w * factor / grid) * grid / factor
    wanted, exact = (_convolved(a, b) for a, b in ((q, held), (h, w)))
    rows = np.moveaxis(h, 1, -1).reshape(-1, 4).astype(np.float32)
    after = written(made, [Rounded(("one",), rows, factor.reshape(-1))], SCHEMES)
    got = kit.run(after, {"x": x.astype(np.float32)})["y"]
    assert np.abs(got - wanted).max() < 0.02 * np.abs(wanted - exact).max()


def _convolved(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, w)


def test_what_cannot_be_rehearsed() -> None:
    made = network()
    assert rehearsable(made, SCHEMES[0])
    assert not rehearsable(made, Scheme("int8", PER_TOKEN, dynamic=True))
    made.graph.opset_imports[""] = 10
    assert not rehearsable(made, SCHEMES[0])
