"""Scales by the step of a diffusion model: each step is quantized as if it were calibrated alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from graphpress.backends import ort, reference
from graphpress.backends.ort.audit import audit
from graphpress.backends.ort.lower import lower
from graphpress.errors import BadRequest, GraphpressError
from graphpress.observe.data import CalibrationData
from graphpress.passes.quantize.quantize import Quantize
from graphpress.pipeline import Pipeline
from graphpress.recipe import Recipe
from graphpress.target import Target
from tests import kit
from tests.passes.quantizing import context, model, normal

TEXT = """
g ({kind}[{t}] t, float[N, 8] x, float[8, 6] w, float[6, 4] v, int64[1] axis) => (float[N, 4] y) {{
    c = Cast <to = 1> (t)
    s = Unsqueeze(c, axis)
    h = Mul(x, s)
    [first] a = MatMul(h, w)
    b = Relu(a)
    [second] y = MatMul(b, v)
}}"""
TARGET = Target.load("ort-cpu")
BOUNDS = (0.1, 0.3, 0.7, 2.0)
STEPS = f"t={','.join(map(str, BOUNDS))}"
STEP = np.repeat(np.array([0.1, 0.25, 0.3, 0.65, 0.7, 1.5, 2.0], np.float32), 8)
RANGE = np.repeat([0, 0, 1, 1, 2, 2, 2], 8)  # by hand: a bound in float32 is where its range begins
DATA = {"t": STEP, "x": normal(len(STEP), 8, seed=3)}


def denoiser(t: str = "N", kind: str = "float") -> ir.Model:
    arrays = {"w": normal(8, 6), "v": normal(6, 4, seed=1), "axis": np.array([1])}
    made = model(TEXT.format(t=t, kind=kind), arrays)
    ShapeInferencePass()(made)
    return made


def quantized(step: Quantize, data: dict[str, np.ndarray], made: ir.Model | None = None) -> ir.Model:
    after, _ = Pipeline([step]).run(made or denoiser(), context(data, None))
    return after


def rows(data: dict[str, np.ndarray], where: np.ndarray) -> dict[str, np.ndarray]:
    return {n: a[where] for n, a in data.items()}


@pytest.mark.parametrize("observer", ["minmax", "mse"])
@pytest.mark.parametrize(("activation", "symmetric"), [("uint8", False), ("int8", True)])
def test_each_step_is_as_if_it_were_calibrated_alone(observer: str, activation: str, symmetric: bool) -> None:
    options = {"observer": observer, "activation": activation, "activation_symmetric": symmetric}
    got = kit.run(quantized(Quantize(steps=STEPS, **options), DATA), DATA)["y"]
    one = kit.run(quantized(Quantize(**options), DATA), DATA)["y"]
    for place in range(3):
        mine = rows(DATA, place == RANGE)
        alone = kit.run(quantized(Quantize(**options), mine), mine)["y"]
        np.testing.assert_array_equal(got[place == RANGE], alone)
        assert place == 2 or not np.array_equal(one[place == RANGE], alone)
    whole = kit.run(denoiser(), DATA)["y"]
    small = RANGE == 0
    assert np.square(got - whole)[small].sum() * 4 < np.square(one - whole)[small].sum()


def test_the_order_of_samples_does_not_matter_nor_what_ran_before() -> None:
    made = quantized(Quantize(steps=STEPS), DATA)
    session = reference.execute(made)
    order = np.random.default_rng(0).permutation(len(STEP))
    first = session(DATA)["y"]
    np.testing.assert_array_equal(session(rows(DATA, order))["y"], first[order])
    np.testing.assert_array_equal(session(DATA)["y"], first)  # nothing counts


@pytest.mark.parametrize("bad", [0.05, 2.5, float("nan"), -1.0])
def test_a_step_in_no_range_is_refused_when_the_model_runs(bad: float) -> None:
    made = quantized(Quantize(steps=STEPS), DATA)
    feeds = {"t": np.array([0.5, bad], np.float32), "x": DATA["x"][:2]}
    with pytest.raises(GraphpressError, match=r"of_step.*idx=3 must be within the inclusive range \[-3,2\]"):
        ort.execute(made)(feeds)


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ("t=0.1,0.5", r"step 0\.65.* lies in no range, they go from 0.1 to 0.5"),
        ("s=0,2", r"no such input.*Known: t, x"),
        ("t=0.1,1.6,1.7,2", r"no sample has t in \[1\.6, 1\.7\)"),
    ],
)
def test_an_unknown_step_is_refused_at_compile(steps: str, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        quantized(Quantize(steps=steps), DATA)


def test_one_clear_error() -> None:
    with pytest.raises(BadRequest, match="are no bounds of ranges"):
        Quantize(steps="t=1,0")
    with pytest.raises(BadRequest, match=r"option 'steps'.*is for static activations.*Set mode: static"):
        Quantize(mode="weight", steps=STEPS)


def test_integer_steps_and_one_step_for_all() -> None:
    """An exact oracle by hand: the scale and the zero point of each range, from its own extremes."""
    data = {"t": np.repeat([3, 999], 8).reshape(-1, 1), "x": DATA["x"][:16]}
    made = quantized(Quantize(steps="t=0,500,999"), data, denoiser("1", "int64"))
    for place, step in enumerate((3, 999)):
        h = data["x"][8 * place : 8 * place + 8] * np.float32(step)
        low, high = min(h.min(), 0), max(h.max(), 0)
        scale = np.float32((np.float64(high) - np.float64(low)) / 255)
        names = [v.name or "" for n in made.graph if n.op_type == "QuantizeLinear" for v in n.inputs[1:]][:2]
        got = reference.execute(made, names)({"t": np.array([step]), "x": data["x"][:1]})
        assert got[names[0]].shape == () and got[names[0]] == scale
        assert got[names[1]] == np.rint(-np.float64(low) / scale)


def test_what_has_no_axis_of_samples_has_one_range_and_says_so() -> None:
    text = """
g (float[N] t, float[8, N] x, float[8, 6] w) => (float[N, 6] y) {
    m = Mul(x, t)
    h = Transpose <perm = [1, 0]> (m)
    k = Transpose <perm = [1, 0]> (h)
    j = Transpose <perm = [1, 0]> (k)
    [layer] y = MatMul(j, w)
}"""
    made = model(text, {"w": normal(8, 6)})
    ShapeInferencePass()(made)
    made.graph.node(3).outputs[0].shape = ir.Shape([None, 8])
    data = {"t": STEP, "x": np.zeros((len(STEP), 8, 1), np.float32)}
    data["x"][:] = DATA["x"][:, :, None]
    data["t"] = STEP[:, None]
    _, (report,) = Pipeline([Quantize(steps=STEPS)]).run(made, context(data, None))
    assert [s.where for s in report.skips if "one range for all steps" in s.why] == ["layer[0] activation"]
    assert report.metrics["sites with a scale for each range of steps"] == 0


@pytest.mark.parametrize(("t", "kernel"), [("1", "integer"), ("N", "weight-only")])
def test_the_audit_says_what_runs(t: str, kernel: str) -> None:
    """One step for all samples: integer products; a scale for each sample: none takes it."""
    data = DATA if t == "N" else DATA | {"t": STEP[:, None]}
    recipe = Recipe.load("w8a8").set([f"quantize.steps={STEPS}", "quantize.fallback=[]"])
    bound = CalibrationData.from_arrays(data).bind(denoiser(t))
    plain, _ = Pipeline(recipe.passes).run(denoiser(t), replace(context(data), data=bound))
    after, feeds = lower(plain, TARGET), {"t": STEP[:1], "x": DATA["x"][:1]}
    sites = {r.node: r for r in audit(after, TARGET, feeds).sites}
    assert {sites[n].verdict for n in ("first", "second")} == {kernel}
    assert sites["first"].kernel == ("MatMulIntegerToFloat" if t == "1" else "MatMul")
    assert ("rounded by the step of each sample" in sites["first"].reason) == (t == "N")
    for i in (0, 20, 50):
        feeds = {"t": STEP[i : i + 1], "x": DATA["x"][i : i + 1]}
        wanted, got = kit.run(plain, feeds)["y"], ort.execute(after)(feeds)["y"]
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
