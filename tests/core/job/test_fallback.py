"""The budget: what goes back to float, in which order, after how many compilations; held to brute force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress.contracts import Budget, HoldsBudgets, Ignores
from graphpress.errors import BadRequest, GateError
from graphpress.job import budgets, hold_drop
from graphpress.job.job import Clock, Compiled, Job
from graphpress.job.models import as_model
from graphpress.observe import collect
from graphpress.observe.memo import Recall
from graphpress.observe.sources.taken import calibration_data
from graphpress.passes.quantize.quantize import Quantize
from graphpress.recipe import Recipe
from graphpress.report.summary import summary
from graphpress.target import Target
from graphpress.types import Role
from tests import kit

LAYERS = ["one", "two", "three", "four"]
WIDTH, CLASSES, SAMPLES = 16, 4, 200


def model(fragile: tuple[str, ...] = ("two",)) -> ir.Model:
    """A residual chain of MatMuls. A fragile layer takes one huge and constant input that its weights cancel: its
    activations have one scale, which that input coarsens."""
    shapes = ", ".join(f"float[{WIDTH}, {WIDTH}] w_{n}, float[{WIDTH}] p_{n}, float[{WIDTH}] q_{n}" for n in LAYERS)
    lines, x = [], "x"
    for n in LAYERS:
        lines.append(f"[up_{n}] u_{n} = Add({x}, p_{n}) [{n}] m_{n} = MatMul(u_{n}, w_{n}) ")
        lines.append(f"[down_{n}] d_{n} = Add(m_{n}, q_{n}) [tanh_{n}] t_{n} = Tanh(d_{n}) ")
        x = f"t_{n}"
    text = f"g (float[N, {WIDTH}] x, {shapes}, float[{WIDTH}, {CLASSES}] w) => (float[N, {CLASSES}] y) {{ "
    made = kit.parse(text + "".join(lines) + f"[head] y = MatMul({x}, w) }}")
    rng = np.random.default_rng(1)
    for value in list(made.graph.inputs[1:]):
        array = rng.normal(size=[int(d) for d in value.shape]).astype(np.float32) / math.sqrt(WIDTH) * 1.5
        name = value.name.partition("_")[2]
        if value.name.startswith(("p_", "q_")):
            array[:] = 0
        if value.name.startswith("p_") and name in fragile:
            array[0] = 1000.0
        if value.name.startswith("w_") and name in fragile:
            array[0] = 0.0
        made.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=value.name)
        made.graph.register_initializer(value)
    return made


def data(made: ir.Model) -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(SAMPLES, WIDTH)).astype(np.float32)
    return {"x": x, "labels": kit.run(made, {"x": x})["y"].argmax(1)}


RECIPE = Recipe("test", (Quantize(op_types=("MatMul",)),), gate=gp.Recipe.load("w8a8").gate)
RECIPE = RECIPE.set(["gate.min_sqnr=-99", "gate.min_cosine=0", "gate.min_agreement=0", "gate.max_loss=100"])


def compile_(made: ir.Model, given: dict[str, np.ndarray], **options) -> gp.Report:
    return gp.compile(made, RECIPE, given, prove=False, **options)[1]


def test_the_fragile_layer_goes_back_to_float_and_only_it() -> None:
    made = model()
    given = data(made)
    free = compile_(made, given)
    assert free.metric["before"] == 100
    assert free.metric["after"] < 90
    held = compile_(made, given, max_drop=5.0)
    assert held.reverted == ["two"]
    assert held.metric["after"] >= held.metric["before"] - 5.0
    assert held.metric["allowed"] == 5.0
    assert {s.node: s.skip for s in held.sites if not s.scheme} == {"two": hold_drop.REVERTED}


FOUR = RECIPE.set(["quantize.weight=int4"])


def coarse(made: ir.Model, names: tuple[str, ...], loud: float = 12.0) -> ir.Model:
    """Layers with a weight for an input that is always 0: their scales have 8 bits, but not 4, for the others."""
    for name in names:
        before = LAYERS[LAYERS.index(name) - 1]
        for weight, where, value in ((f"w_{before}", np.s_[:, 0], 0.0), (f"w_{name}", np.s_[0], loud)):
            array = made.graph.initializers[weight].const_value.numpy().copy()
            array[where] = value
            made.graph.initializers[weight].const_value = ir.tensor(array, name=weight)
    return made


def held_(made: ir.Model, recipe: Recipe, max_drop: float) -> gp.Report:
    report = gp.compile(made, recipe, data(made), prove=False, max_drop=max_drop)[1]
    assert report.metric["after"] >= report.metric["before"] - max_drop
    return report


def bits(report: gp.Report) -> dict[str, int]:
    """Of the weights of each layer that has codes."""
    return {s.node: v.bits for s, v in report.plan.items() if s.slot == 1}


def test_a_layer_of_few_bits_gets_8_where_that_is_enough() -> None:
    made = coarse(model(fragile=()), ("two",))
    report = held_(made, FOUR, 15.0)
    assert report.widened == ["two"] and report.reverted == []
    assert bits(report) == {"one": 4, "two": 8, "three": 4, "four": 4, "head": 4}
    assert "1 sites have 8 bits to hold the budget" in summary(report)


def test_a_layer_that_8_bits_do_not_help_goes_back_and_only_those_that_need_it_get_8() -> None:
    made = coarse(model(fragile=("one",)), ("three",))
    report = held_(made, FOUR, 15.0)
    assert report.reverted == ["one"] and report.widened == ["three"]
    assert bits(report) == {"two": 4, "three": 8, "four": 4, "head": 4}


def test_what_has_another_number_format_gets_evenly_spaced_8_bits() -> None:
    plan = gp.Plan({
        gp.Site("a", 1, Role.WEIGHT): gp.Scheme("uint4", symmetric=False),
        gp.Site("b", 1, Role.WEIGHT): gp.Scheme("int3", quantizer="tlq"),
        gp.Site("b", 0, Role.ACTIVATION): gp.Scheme("uint8"),
        gp.Site("c", 1, Role.WEIGHT): gp.Scheme("uint4", quantizer="mxfp4"),
    })  # fmt: skip
    other = "int8 sym minmax quantizer=affine"
    wanted = {"a[1] weight": "uint8", "b[1] weight": other, "c[1] weight": other}
    assert hold_drop.eight_bits(plan, ["a", "b", "c"]) == wanted


def test_a_drop_that_is_asked_for_is_no_failure_of_the_gate() -> None:
    strict = RECIPE.set(["gate.max_loss=2"])
    assert budgets.handed(strict, None, None, 5.0).gate.max_loss == 5.0
    assert budgets.handed(strict, None, None, 0.5) is strict
    assert budgets.handed(strict, None, None, math.inf) is strict  # refused by whoever holds it


def test_nothing_goes_back_when_the_budget_holds_already() -> None:
    made = model(fragile=())
    held = compile_(made, data(made), max_drop=10.0)
    assert held.reverted == []


def test_a_budget_that_nothing_holds_is_a_gate_error() -> None:
    made = model()
    calls = itertools.count()

    def falling(runner: object) -> float:
        return 10.0 if next(calls) == 1 else 0.0  # the second model to be measured is the float one

    with pytest.raises(GateError, match="even with every site in float"):
        compile_(made, data(made), max_drop=0.5, evaluate=falling)


def test_a_function_from_python_is_the_metric() -> None:
    made = model()
    given = data(made)
    x = given["x"][:50]
    truth = kit.run(made, {"x": x})["y"]

    def closeness(runner: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> float:
        return -float(np.abs(runner({"x": x})["y"] - truth).max())

    del given["labels"]
    held = compile_(made, given, max_drop=0.2, evaluate=closeness)
    assert held.reverted == ["two"]
    assert held.metric["before"] == pytest.approx(0, abs=1e-4)
    assert -0.2 <= held.metric["after"] < 0


def test_a_budget_without_a_metric_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model()
    given = data(made)
    del given["labels"]
    monkeypatch.setattr(Job, "once", lambda *_: pytest.fail("it was compiled"))
    with pytest.raises(BadRequest, match="labels"):
        compile_(made, given, max_drop=1.0)
    for odd in (-1.0, math.nan, math.inf):
        with pytest.raises(BadRequest, match="from 0 up"):
            compile_(made, data(made), max_drop=odd)


def job(made: ir.Model) -> Job:
    work = Job(as_model(made), RECIPE, Target.load("ort-cpu"), 0, gp.Context().progress, Clock())
    work.take(calibration_data(data(made), made), None)
    work.calibrate = Recall()
    return work


def test_the_order_is_that_of_the_noise_each_site_alone_brings() -> None:
    """Brute force: each layer quantized alone, by hand, against the float outputs."""
    made = model(fragile=("two", "three"))
    work = job(made)
    order = hold_drop.rank(work, work.once(RECIPE))
    feeds = next(iter(work.held_out.take(hold_drop.RANK_SAMPLES, 0).batches(64)))
    truth = kit.run(made, feeds)["y"].astype(np.float64)
    noise = {}
    for name in [*LAYERS, "head"]:
        others = tuple(n for n in [*LAYERS, "head"] if n != name)
        alone = Recipe("alone", (Quantize(op_types=("MatMul",), ignore=others),), gate=RECIPE.gate)
        noise[name] = float(((kit.run(work.once(alone).portable, feeds)["y"] - truth) ** 2).sum())
    assert order == sorted(noise, key=lambda n: -noise[n])
    assert set(order[:2]) == {"two", "three"}


def test_compilations_are_few_and_calibration_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model(fragile=("one", "two", "three"))
    trials, observed = [], []
    once = Job.once
    monkeypatch.setattr(Job, "once", lambda self, recipe: trials.append(recipe) or once(self, recipe))
    real = collect._Run.run
    monkeypatch.setattr(collect._Run, "run", lambda self, size: observed.append(1) or real(self, size))
    held = compile_(made, data(made), max_drop=3.0)
    assert set(held.reverted) == {"one", "two", "three"}
    assert len(trials) <= 2 * math.ceil(math.log2(len(LAYERS) + 1)) + 1
    assert len(observed) == 1


def test_names_that_look_like_patterns_are_taken_exactly() -> None:
    recipe = hold_drop.without(Recipe("r", (Quantize(sites={"a*": "int4"}),)), ["a*b[0]", "re:x"])
    step = recipe.passes[0]
    made = kit.parse("g (float[2] x) => (float[2] z) { [n1] y = Relu(x) [n2] z = Relu(y) }")
    made.graph[0].name, made.graph[1].name = "a*b[0]", "re:x"
    from graphpress.graph import selectors

    assert [selectors.match(s, made.graph, "")[0].name for s in step.ignore] == ["a*b[0]", "re:x"]
    assert list(step.sites.values()) == ["int4", "float", "float"]


def test_a_site_map_does_not_keep_a_site_from_going_back() -> None:
    made = model()
    recipe = Recipe("m", (Quantize(op_types=("MatMul",), sites={"two": "int8 mse"}),), gate=RECIPE.gate)
    held = gp.compile(made, recipe, data(made), prove=False, max_drop=5.0)[1]
    assert held.reverted == ["two"]


def test_what_is_recalled_equals_what_is_collected() -> None:
    made = model()
    work = job(made)
    fresh = work.once(RECIPE)
    again = work.once(RECIPE)
    kit.assert_same_structure(fresh.portable, again.portable)
    work.calibrate = None
    kit.assert_same_structure(fresh.portable, work.once(RECIPE).portable)


@dataclass(frozen=True)
class Mine(gp.Pass, HoldsBudgets, Ignores):
    """A pass that says that it can hold budgets, under names of its own."""

    within: tuple[object, ...] = ()
    ignore: tuple[str, ...] = ()

    name = "mine"

    def run(self, model: ir.Model, ctx: gp.Context, report: gp.PassReport) -> None: ...

    def with_budgets(self, max_latency: Budget, max_size: Budget, max_drop: float | None) -> gp.Pass:
        return replace(self, within=(max_latency, max_size, max_drop))


@dataclass(frozen=True)
class Alike(gp.Pass):
    """One with options of those names, which says nothing."""

    max_latency: float = 1.0
    max_size: float = 1.0
    max_drop: float = 1.0
    ignore: tuple[str, ...] = ()

    name = "alike"

    def run(self, model: ir.Model, ctx: gp.Context, report: gp.PassReport) -> None: ...


def test_what_a_pass_says_it_can_counts_and_not_how_its_options_are_called() -> None:
    recipe = Recipe("r", (Alike(), Mine()))
    assert budgets.handed(recipe, "0.5x", None, 2.0).passes == (Alike(), Mine(("0.5x", None, 2.0)))
    assert hold_drop.without(recipe, ["a.b"]).passes == (Alike(), Mine(ignore=(r"re:a\.b",)))
    with pytest.raises(BadRequest, match="max_size: recipe 'r' cannot hold it"):
        budgets.handed(Recipe("r", (Alike(),)), None, 1e6, None)


@pytest.mark.parametrize(("count", "holds_from"), [(n, k) for n in range(1, 18) for k in (*range(1, n + 1), n + 1)])
def test_the_fewest_are_found_within_the_stated_number_of_compilations(
    monkeypatch: pytest.MonkeyPatch, count: int, holds_from: int
) -> None:
    names = [f"n{i}" for i in range(count)]
    trials: list[int] = []

    class Stub:
        recipe, evaluate = Recipe("r", (Mine(),)), staticmethod(lambda runner: 1.0)

        def original(self) -> None: ...

        def once(self, recipe: Recipe) -> Compiled:
            trials.append(len(recipe.passes[0].ignore))
            return made(1.0 if trials[-1] >= holds_from else 0.0)

    def made(metric: float) -> Compiled:
        empty = kit.parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
        return Compiled(empty, empty, empty, gp.Report(plan=gp.Plan()), metric)

    monkeypatch.setattr(hold_drop, "rank", lambda *_: names)
    if holds_from > count:
        with pytest.raises(GateError, match="from 1 to 0 even with every site in float"):
            hold_drop.hold_drop(Stub(), made(0.0), 0.5)
    else:
        assert hold_drop.hold_drop(Stub(), made(0.0), 0.5).report.reverted == names[:holds_from]
    assert len(trials) == len(set(trials)) <= 2 * math.log2(count) + 3


@pytest.mark.parametrize(("floats", "wide"), [(f, w) for f in range(5) for w in range(9 - f)])
def test_of_few_bits_the_fewest_floats_and_then_the_fewest_of_8_are_found(
    monkeypatch: pytest.MonkeyPatch, floats: int, wide: int
) -> None:
    """The first ``floats`` of eight sites need float, the next ``wide`` 8 bits, all others 4."""
    names = [f"n{i}" for i in range(8)]
    recipe = Recipe("r", (Quantize(weight="int4"),))
    plan = gp.Plan({gp.Site(n, 1, Role.WEIGHT): gp.Scheme("int4") for n in names})
    trials: list[tuple[set[str], set[str]]] = []

    class Stub:
        evaluate = staticmethod(lambda runner: 1.0)

        def original(self) -> None: ...

        def once(self, recipe: Recipe) -> Compiled:
            back = {n for n in names if any(n in selector for selector in recipe.passes[0].ignore)}
            eight = {n for n in names if f"{n}[1] weight" in recipe.passes[0].sites} - back
            trials.append((back, eight))
            return made(float(back >= set(names[:floats]) and back | eight >= set(names[: floats + wide])))

    def made(metric: float) -> Compiled:
        empty = kit.parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
        return Compiled(empty, empty, empty, gp.Report(plan=plan), metric)

    stub = Stub()
    stub.recipe = recipe
    monkeypatch.setattr(hold_drop, "rank", lambda *_: names)
    start = 0.0 if floats + wide else 1.0
    report = hold_drop.hold_drop(stub, made(start), 0.5).report
    assert (report.reverted, report.widened) == (names[:floats], names[floats : floats + wide])
    assert len(trials) <= 2 * (2 * math.log2(8) + 4)
