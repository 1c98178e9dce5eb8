"""The pass ``acm``: exact with all learners, nested below that, counted right, one file for every budget."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress.backends import ort, reference
from graphpress.backends.ort import lower
from graphpress.context import Context
from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.observe.data import CalibrationData
from graphpress.ops.acm_price import price_at
from graphpress.passes.acm import site, usage
from graphpress.passes.acm.acm import Acm
from graphpress.passes.clean.infer_shapes import InferShapes
from graphpress.pipeline import Pipeline
from graphpress.recipe import Recipe
from graphpress.target import Target
from tests import kit
from tests.passes.quantizing import model, normal

TOKENS = normal(6, 5, 8, seed=9)


def encoder(hidden: int = 12, bias: bool = True) -> ir.Model:
    """Two residual blocks of width 8, a gated one and a plain one, behind a projection with a skip around it."""
    weights = {
        "wp": normal(8, 8), "wu": normal(8, hidden, seed=1), "wg": normal(8, hidden, seed=2),
        "wd": normal(hidden, 8, seed=3) / 4, "w1": normal(8, hidden, seed=4), "w2": normal(hidden, 8, seed=5) / 4,
        "b1": normal(hidden, seed=6) * bias, "b2": normal(8, seed=7) * bias, "bg": normal(hidden, seed=8) * bias,
    }  # fmt: skip
    shapes = ", ".join(f"float{list(w.shape)} {n}" for n, w in weights.items())
    text = f"""g (float[N,T,8] x, {shapes}) => (float[N,T,8] y) {{
      p = MatMul(x, wp) q = Tanh(p) r = Add(x, q)
      g0 = MatMul(r, wg) g = Add(g0, bg) s = Sigmoid(g) a = Mul(g, s) u = MatMul(r, wu) m = Mul(a, u)
      d = MatMul(m, wd) t = Add(r, d)
      h0 = MatMul(t, w1) h = Add(h0, b1) e = Relu(h) f0 = MatMul(e, w2) f = Add(f0, b2) y = Add(t, f) }}"""
    return kit.apply(model(text, weights), InferShapes())[0]


def context(**more) -> Context:
    return Context(
        data=CalibrationData.from_arrays({"x": TOKENS}), run=partial(ort.execute, threads=1), oracle=reference.execute,
        target=Target.load("ort-cpu"), **more,
    )  # fmt: skip


def at(budget: float, x: np.ndarray = TOKENS) -> dict[str, np.ndarray]:
    return {"x": x, "budget": np.array(budget, np.float32)}


@pytest.mark.parametrize("hidden", [12, 13])
@pytest.mark.parametrize("data", [True, False])
def test_all_learners_are_the_layer(hidden: int, data: bool) -> None:
    """Within 1e-6 of the outputs' size, also where the last learner is filled up."""
    before = encoder(hidden)
    after, (report,) = kit.apply(before, Acm(), ctx=context() if data else Context())
    assert report.changed == 2
    a, b = kit.run(before, {"x": TOKENS}), kit.run(after, {"x": TOKENS})
    np.testing.assert_allclose(a["y"], b["y"], rtol=0, atol=1e-6 * np.abs(a["y"]).max())


HELD: dict[str, np.ndarray] = {
    "wf": normal(8, 24), "bf": normal(24, seed=1), "w1": normal(8, 12, seed=2), "b1": normal(12, seed=3),
    "w2": normal(12, 8, seed=4) / 4, "b2": normal(8, seed=5), "w3": normal(8, 4, seed=6), "steep": np.float32(1.702),
    "flat8": np.array([-1, 8]), "flat12": np.array([-1, 12]), "deep12": np.array([-1, 5, 12]),
    "deep8": np.array([-1, 5, 8]),
}  # fmt: skip
SPELLED = {
    "fused gate and up": """p = MatMul(x, wf) f = Add(p, bf) s, t = Split <axis = -1, num_outputs = 2> (f)
      a = Gelu(t) m = Mul(s, a) d = MatMul(m, w2) y = Add(x, d)""",
    "Conv1D": """v = Reshape(x, flat8) h = Gemm(v, w1, b1) t = Reshape(h, deep12) z = Mul(t, steep) s = Sigmoid(z)
      a = Mul(t, s) u = Reshape(a, flat12) d = Gemm(u, w2, b2) r = Reshape(d, deep8) y = Add(x, r)""",
    "a part of a row": """h = MatMul(x, w1) a = Relu(h) d = MatMul(a, w2) e = Relu(d) g = MatMul(e, w3)
      y = Concat<axis = -1>(g, g)""",
}


@pytest.mark.parametrize("form", SPELLED)
def test_a_block_in_another_form_is_cut_as_well(form: str) -> None:
    """With all learners within 1e-6 of the outputs' size, in the reference and lowered; with half of them not."""
    body = SPELLED[form]
    held = {n: a for n, a in HELD.items() if f"{n})" in body or f"{n}," in body}
    shapes = ", ".join(
        f"{'int64' if a.dtype.kind == 'i' else 'float'}{list(a.shape) if a.shape else ''} {n}" for n, a in held.items()
    )
    made = model(f"g (float[N,5,8] x, {shapes}) => (float[N,5,8] y) {{ {body} }}", held)
    before = kit.apply(made, InferShapes())[0]
    after, (report,) = kit.apply(before, Acm(), ctx=context())
    assert report.changed == 1
    want, run = kit.run(before, {"x": TOKENS})["y"], ort.execute(lower(after, Target.load("ort-cpu")))
    for got in (kit.run(after, at(1.0))["y"], run(at(1.0))["y"]):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())
    assert np.abs(run(at(0.5))["y"] - want).max() > 1e-3


def test_a_budget_is_a_run_time_input_of_one_file(tmp_path) -> None:
    """Untrained gates take floor(b N) learners everywhere: the leading units of each layer, and nothing else."""
    before = encoder()
    after, _ = kit.apply(before, Acm(learners=4, budget=0.5), ctx=context())
    gp.save(after, tmp_path / "m.onnx")
    run = gp.lower(tmp_path / "m.onnx")
    meter = usage.Meter(after, context().data, reference.execute)
    knots, prices = (edit.constant(site.price_node(after).inputs[i]) for i in (1, 2))
    for budget, count in ((0.1, 0), (0.25, 1), (0.4, 1), (0.5, 2), (0.75, 3), (0.99, 3), (1.0, 4)):
        got = run(at(budget))["y"]
        np.testing.assert_allclose(got, kit.run(after, at(budget))["y"], rtol=0, atol=1e-5)
        found = meter.usage(-1e9 if budget >= 1 else float(np.interp(budget, knots, prices)))
        assert found.means() == [count, count]
    np.testing.assert_array_equal(run({"x": TOKENS})["y"], run(at(0.5))["y"])
    errors = [np.abs(run(at(b))["y"] - kit.run(before, {"x": TOKENS})["y"]).mean() for b in (0.25, 0.5, 0.75, 1.0)]
    assert errors == sorted(errors, reverse=True)


def test_the_most_important_units_come_first() -> None:
    """The leading half leaves less error than the trailing half would."""
    before = encoder(bias=False)
    after, _ = kit.apply(before, Acm(learners=2), ctx=context())
    want = kit.run(before, {"x": TOKENS})["y"]
    leading = kit.run(after, at(0.5))["y"]
    for s in site.sites(after):
        s.set("w1", s.array("w1")[::-1])
        s.set("b1", s.array("b1")[::-1])
        s.set("w2", s.array("w2")[::-1])
    trailing = kit.run(after, at(0.5))["y"]
    assert np.square(leading - want).sum() < 0.7 * np.square(trailing - want).sum()


def test_work_is_counted_as_brute_force_counts_it() -> None:
    """Multiply-adds of every product that the lowered graph runs, gate by token, learners by the rows they see."""
    after, _ = kit.apply(encoder(), Acm(), ctx=context())
    found = site.sites(after)
    rng = np.random.default_rng(0)
    for s in found:
        s.set("gate", rng.normal(size=s.array("gate").shape) * 2)
    site.set_table(after, np.array([0.0, 1.0]), np.array([1.0, 0.0]))
    made = lower(after, Target.load("ort-cpu"))
    products = [n for n in made.graph if n.op_type in ("MatMul", "FusedMatMul")]
    reads = {n.inputs[0].name: n.inputs[0] for n in products}
    inner = [n for n in reads if n not in ("x",)]
    seen = reference.execute(made, inner)(at(0.5)) | {"x": TOKENS}
    dense = {n.name: n for n in products if n.inputs[1].name == "wp"}
    total = sum(
        seen[n.inputs[0].name].size * edit.constant(n.inputs[1]).shape[1] for n in products if n.name not in dense
    )
    taken = reference.execute(after, [s.taken.name for s in found])(at(0.5))
    by_site = [s.macs(float(k.mean()), k.size) for s, k in zip(found, taken.values(), strict=True)]
    assert total == pytest.approx(sum(by_site), rel=1e-9)
    means = [float(k.mean()) for k in taken.values()]
    assert len({round(m, 3) for m in means}) == 2
    assert 0.1 < site.share(found, means) < 0.9
    # and by the formula, by hand: gates [8, 5]; a gated learner 8 x 6 + 3 x 8, a plain one 8 x 3 + 3 x 8
    assert sum(by_site) == pytest.approx(30 * (2 * 8 * 5 + means[0] * (8 * 6 + 3 * 8) + means[1] * (8 * 3 + 3 * 8)))


def test_projections_take_one_learner_at_least() -> None:
    before = encoder()
    after, _ = kit.apply(before, Acm(projections=True, learners=2), ctx=context())
    projection = site.sites(after)[0]
    assert (projection.name, projection.least, projection.form[0]) == ("MatMul_0", 1, "identity")
    assert projection.learner_macs * 2 <= 1.05 * 64
    assert projection.array("gate").shape == (8, 2)
    taken = reference.execute(after, [s.taken.name for s in site.sites(after)])(at(0.05))
    assert [int(k.max()) for k in taken.values()] == [1, 0, 0]


def test_a_projection_keeps_the_directions_that_the_data_has() -> None:
    """On data of rank 3 a product of rank 4 loses nothing; without looking at the data it would."""
    low = (normal(40, 3) @ normal(3, 8, seed=5)).astype(np.float32).reshape(8, 5, 8)
    before = model(
        "g (float[N,T,8] x, float[8,8] w) => (float[N,T,8] y) { p = MatMul(x, w) y = Add(x, p) }", {"w": normal(8, 8)}
    )
    ctx = Context(data=CalibrationData.from_arrays({"x": low}), run=partial(ort.execute, threads=1))
    want = kit.run(before, {"x": low})["y"]
    options = Acm(projections=True, learners=2)
    for c, exact in ((ctx, True), (Context(), False)):
        after, _ = kit.apply(before, options, ctx=c)
        assert (np.abs(kit.run(after, {"x": low})["y"] - want).max() < 1e-3 * np.abs(want).max()) == exact


def test_what_is_measured_is_monotone_and_holds_the_budget() -> None:
    after, _ = kit.apply(encoder(), Acm(), ctx=context())
    rng = np.random.default_rng(1)
    for s in site.sites(after):
        s.set("gate", rng.normal(size=s.array("gate").shape))
    meter = usage.Meter(after, context().data, reference.execute)
    knots, prices = usage.fit_prices(meter)
    assert (np.diff(prices) <= 0).all()
    assert prices[0] > prices[-1]
    found = [meter.usage(p).share for p in prices]
    assert found == sorted(found)
    for knot, got in zip(knots[:-1], found, strict=False):
        assert got <= knot + 1e-9
        assert got > knot - 0.08  # 60 choices in all
    site.set_table(after, knots, prices)
    one = meter.usage(float(prices[4]))
    assert sum(one.counts[0]) == 30
    assert len(one.heat[0]) == 5
    assert one.share == pytest.approx(usage.share(meter.sites, one.means()))


@dataclass
class Taken:
    """A meter of learners that are taken where they are worth more than the price."""

    worth: np.ndarray

    def usage(self, price: float) -> usage.Usage:
        return usage.Usage((), (), (), float((self.worth > price).mean()))


WORTH = {
    "normal": lambda rng: rng.normal(size=4000), "heavy": lambda rng: rng.standard_t(2, 4000),
    "two kinds": lambda rng: np.append(rng.normal(-3, 0.05, 2200), rng.normal(3, 0.05, 1800)),
    "small": lambda rng: 1e-3 * rng.normal(size=4000), "far": lambda rng: 40 + 20 * rng.exponential(size=4000),
    "one far": lambda rng: np.append(rng.normal(size=3999), 1e5),
}  # fmt: skip


@pytest.mark.parametrize("kind", WORTH)
@pytest.mark.parametrize("floor", [0.0, 0.25])
def test_every_budget_is_met(kind: str, floor: float) -> None:
    """What every token takes in any case cannot be had for less."""
    worth = WORTH[kind](np.random.default_rng(3))
    meter = Taken(np.append(worth, np.full(int(len(worth) * floor / (1 - floor)), 1e12)))
    knots, prices = usage.fit_prices(meter)  # type: ignore[arg-type]
    assert (np.diff(knots) > 0).all() and (np.diff(prices) <= 0).all() and knots[-1] == 1
    for budget in np.linspace(0, 0.99, 100):
        taken = meter.usage(price_at(budget, knots, prices)).share
        assert abs(taken - max(budget, floor)) <= 0.02, budget


def test_budgets_that_were_met_between_tenths_are_where_they_were() -> None:
    meter = Taken(np.random.default_rng(3).uniform(-1, 1, 4000))
    tenths, before = usage.fit_prices(meter, usage.KNOTS)  # type: ignore[arg-type]
    knots, prices = usage.fit_prices(meter)  # type: ignore[arg-type]
    assert len(knots) < 15
    for budget in np.linspace(0.1, 0.89, 80):
        assert price_at(budget, knots, prices) == price_at(budget, tenths, before)


@pytest.mark.parametrize("budget", [0.0, -0.5, 1.5, float("nan")])
def test_a_budget_outside_0_to_1_is_refused(budget: float) -> None:
    with pytest.raises(BadRequest, match="above 0 and at most 1"):
        Acm(budget=budget)


@pytest.mark.parametrize(
    ("options", "what"),
    [({"learners": 0}, "learner is needed"), ({"fraction": 1.5}, "must lie"), ({"fraction": 0}, "must lie")],
)
def test_bad_options_are_refused(options: dict, what: str) -> None:
    with pytest.raises(BadRequest, match=what):
        Acm(**options)


def test_selectors() -> None:
    names = [s.name for s in site.sites(kit.apply(encoder(), Acm())[0])]
    assert len(names) == 2
    for options, want in (
        ({"select": (names[0],)}, [names[0]]),
        ({"ignore": (names[0],)}, [names[1]]),
        ({"select": ("MatMul_0",)}, ["MatMul_0"]),
    ):
        assert [s.name for s in site.sites(kit.apply(encoder(), Acm(**options))[0])] == want
    _, (report,) = kit.apply(encoder(), Acm(select=("Tanh_1",)))
    assert "no feed-forward block and no lone projection ends there" in [s.why for s in report.skips]
    with pytest.raises(BadRequest, match="matches no node"):
        kit.apply(encoder(), Acm(select=("nothing",)))


def test_what_cannot_be_cut_says_why() -> None:
    after, (report,) = kit.apply(encoder(), Acm(learners=16))
    assert not site.sites(after)
    assert ["fewer than the learners" in s.why for s in report.skips] == [True, True]
    nothing = kit.parse("g (float[2] x) => (float[2] y) { y = Tanh(x) }")
    _, (report,) = kit.apply(nothing, Acm())
    assert [s.why for s in report.skips] == ["it has no feed-forward block"]


def test_a_block_without_a_way_around_it_keeps_one_learner() -> None:
    weights = {"w1": normal(8, 12), "w2": normal(12, 4, seed=1)}
    text = """g (float[N,8] x, float[8,12] w1, float[12,4] w2) => (float[N,4] y) {
      h = MatMul(x, w1) a = Relu(h) y = MatMul(a, w2) }"""
    after, _ = kit.apply(model(text, weights), Acm())
    assert site.sites(after)[0].least == 1
    assert np.abs(kit.run(after, {"x": normal(3, 8), "budget": np.array(0.01, np.float32)})["y"]).max() > 0


def test_a_finished_model_keeps_its_budget_through_a_file_and_a_second_clean(tmp_path: Path) -> None:
    after, _ = kit.apply(encoder(), Acm(), ctx=context())
    gp.save(after, tmp_path / "m.onnx")
    again, _ = Pipeline(Recipe.load("clean").passes).run(gp.load(tmp_path / "m.onnx"), context())
    assert [v.name for v in again.graph.inputs] == ["x", "budget"]
    for budget in (0.25, 1.0):
        np.testing.assert_array_equal(kit.run(again, at(budget))["y"], kit.run(after, at(budget))["y"])
