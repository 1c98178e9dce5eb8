"""The pass as a whole: budgets held by what was compiled, bad input, the plan and the picture in its report."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress.context import Context
from graphpress.contracts import PassReport
from graphpress.errors import BadRequest, GateError, StaleSite
from graphpress.graph import file_size
from graphpress.job import budgets, engine
from graphpress.passes.allocate.allocate import Allocate
from graphpress.passes.allocate.amounts import absolute
from graphpress.passes.quantize.apply_plan import ApplyPlan
from graphpress.pipeline import Pipeline
from graphpress.recipe import Recipe
from graphpress.report import page
from graphpress.report import report as reports
from graphpress.runner import Arrays, Runner
from graphpress.types import Plan, Scheme, Site
from tests import kit
from tests.passes import allocating


def run(ctx: Context | None = None, **options: Any) -> tuple[ir.Model, PassReport]:
    """The residual network after the pass, folded, and the report of the pass."""
    step = Allocate(**{"formats": allocating.FORMATS, "samples": 8, "measure": 2, **options})
    ctx = ctx or allocating.context(allocating.images())
    passes = (step, *Recipe.load("fold").passes)
    model, done = Pipeline(passes, check_numbers=False).run(allocating.residual(), ctx)
    return model, done[0]


def agreement(runner: Runner) -> float:
    """Per cent of images whose largest class is that of the float network."""
    x = np.random.default_rng(3).normal(size=(64, 3, 8, 8)).astype(np.float32)
    want = kit.run(allocating.residual(), {"x": x})["y"].argmax(1)
    return float((runner({"x": x})["y"].argmax(1) == want).mean() * 100)


def test_a_size_budget_is_held_by_the_model_and_looser_is_never_worse() -> None:
    whole = reports.stored_bytes(allocating.residual())
    drops = []
    for share in (0.16, 0.3, 0.6):
        model, report = run(usual_size=f"{share}x")  # of the tensors; max_size is of the file
        assert reports.stored_bytes(model) <= share * whole
        assert report.metrics["size"] == pytest.approx(reports.stored_bytes(model) / whole, rel=0.01)
        drops.append(report.metrics["divergence predicted"])
    assert drops == sorted(drops, reverse=True)
    assert drops[0] > drops[-1] >= 0


@pytest.mark.parametrize("share", [0.3, 0.45])
def test_a_size_that_is_asked_for_is_that_of_the_file(tmp_path: Path, share: float) -> None:
    """With its nodes, scales and names: of a small model they are a third."""
    made = allocating.residual()
    low, report = gp.compile(made, "mixed", allocating.images(), max_size=f"{share}x", gate=False, prove=False)
    for name, model in (("before", made), ("after", low)):
        gp.save(model, tmp_path / name)
    before, after = ((tmp_path / name).stat().st_size for name in ("before", "after"))
    assert after <= share * before * 1.01
    assert report.size["file_before"] == pytest.approx(before, rel=0.01)
    assert report.size["file_after"] == pytest.approx(after, rel=0.01)


def test_the_report_holds_plan_and_front_and_draws_them() -> None:
    model, report = run(usual_size="0.3x")
    assert report.plan is not None
    again, _ = Pipeline([ApplyPlan(report.plan), *Recipe.load("fold").passes], check_numbers=False).run(
        allocating.residual(), allocating.context(allocating.images())
    )
    kit.assert_same_structure(model, again)  # the plan is all there is to it
    (front,) = report.exhibits
    points = json.loads(json.dumps(front.data))["points"]
    predicted, measured = ([p for p in points if (p["look"] == "predicted") is w] for w in (True, False))
    costs, drops = ([p[k] for p in predicted] for k in ("size", "drop"))
    assert costs == sorted(costs)
    assert drops == sorted(drops, reverse=True)
    assert [p["look"] for p in measured].count("taken") == 1
    assert all(p["size"] == pytest.approx(p["predicted"]["size"], rel=0.01) for p in measured)
    whole = reports.Report(model="m", recipe="mixed", target="ort-cpu", passes=[report])
    html = page.render(whole)
    assert html.count("<circle") == len(points)
    assert html.count('class="taken"') == 1
    assert "addEventListener" in html
    assert "<script" not in page.render(reports.Report())
    assert whole.to_json()["passes"][0]["exhibits"][0]["name"] == "size against loss"


def test_a_loss_in_points_is_held_by_the_compiled_model() -> None:
    ctx = replace(allocating.context(allocating.images()), evaluate=agreement)
    model, report = run(ctx, max_drop=5.0, objective="size", measure=4)
    assert ctx.deploy is not None
    assert agreement(ctx.deploy(model)) >= 95
    assert report.metrics["metric lost"] <= 5
    assert report.metrics["size"] < 0.6


def slow(model: ir.Model) -> Runner:
    """A target on which each operator with weights takes 2 ms in float, and nothing in codes."""
    runtime = engine.of(allocating.TARGET)
    lowered, floats = runtime.lower(model, allocating.TARGET), 0
    runner = runtime.execute(lowered, threads=1)
    for node in lowered.graph:
        makers = [v.producer() for v in node.inputs[:2] if v is not None]
        codes = all(m is not None and m.op_type == "DequantizeLinear" for m in makers)
        floats += node.op_type in ("Conv", "Gemm") and not codes

    class Slow:
        input_names, output_names = runner.input_names, runner.output_names

        def __call__(self, feeds: Arrays) -> dict[str, np.ndarray]:
            time.sleep(2e-3 * floats)
            return runner(feeds)

    return Slow()


@pytest.mark.slow
def test_latency_is_measured_on_the_target_and_held() -> None:
    ctx = replace(allocating.context(allocating.images()), deploy=slow)
    _, report = run(ctx, max_latency="0.6x", ties=())
    assert report.exhibits[0].data["across"] == "latency"
    assert report.metrics["latency"] <= 0.6
    assert 2 <= sum(report.metrics.get(f"operators in {f}", 0) for f in ("w8a8", "w4a8")) < 4  # two of four is enough
    assert report.metrics["latency predicted"] == pytest.approx(report.metrics["latency"], abs=0.1)


def test_without_a_target_bytes_can_be_limited_and_latency_cannot() -> None:
    ctx = allocating.context(allocating.images(), deploy=False, torch=False)
    assert run(ctx, max_size="0.3x")[1].metrics["size"] <= 0.3
    with pytest.raises(BadRequest, match="latency needs a target"):
        run(ctx, max_latency="0.5x")


def test_an_infeasible_budget_gives_the_tightest_that_can_be_kept() -> None:
    with pytest.raises(BadRequest, match=r"budget size.* bytes is the least") as e:
        run(max_size="0.01x")
    assert e.value.tightest.keys() == {"size"}  # type: ignore[attr-defined]
    least = e.value.tightest["size"]  # type: ignore[attr-defined]
    size = float(str(run(max_size=least)[1].metrics["size"]))
    assert size == pytest.approx(least / file_size.file_bytes(allocating.residual()), rel=0.01)
    with pytest.raises(BadRequest, match=r"drop 0 asked.* least measured|drop.*is the least"):
        run(max_size="0.3x", max_drop=0.0)


@pytest.mark.parametrize("bad", ["0x", "1.5x", "-0.1x", "nan", "x", "0.5 x y", 0, -3.0, "inf"])
def test_budgets_that_mean_nothing_are_refused(bad: float | str) -> None:
    with pytest.raises(BadRequest, match="max_size"):
        run(max_size=bad)
    assert absolute("0.5x", 10.0, "max_size") == 5.0
    assert absolute("7", 10.0, "max_size") == absolute(7, 10.0, "max_size") == 7.0
    assert absolute(None, 10.0, "max_size") is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "there is no budget"),
        ({"max_drop": -1.0}, "is no budget"),
        ({"max_drop": float("nan")}, "is no budget"),
        ({"max_size": "0.5x", "samples": 0}, "at least 1"),
        ({"max_size": "0.5x", "formats": ("w5a8",)}, "is no format"),
        ({"max_size": "0.5x", "ties": ("names",)}, "is no kind of tie"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        run(**options)


def test_ignored_operators_stay_float() -> None:
    _, report = run(max_size="0.6x", ignore=("stem",))
    assert report.plan is not None
    assert "stem" not in report.plan.nodes()
    assert any(s.where == "stem" for s in report.skips)


def test_a_plan_with_unknown_sites_names_the_nearest() -> None:
    plan = Plan({Site.parse("fist[1] weight"): Scheme()})
    with pytest.raises(StaleSite, match="Did you mean 'first'"):
        ApplyPlan(plan).run(allocating.residual(), allocating.context(None), PassReport())


def test_budgets_are_handed_to_the_pass_that_can_hold_them() -> None:
    mixed = Recipe.load("mixed")
    handed = budgets.handed(mixed, "0.6x", None, 0.5)
    step = next(p for p in handed.passes if isinstance(p, Allocate))
    assert (step.max_latency, step.max_size, step.max_drop) == ("0.6x", None, 0.5)
    assert budgets.handed(handed, "0.6x", None, 0.5) == handed
    assert budgets.handed(mixed, None, None, None) is mixed
    assert Recipe.load(handed.to_json()) == handed
    plain = Recipe.load("w8a8")
    assert budgets.handed(plain, None, None, 0.5) is plain  # it goes back to float, site by site
    with pytest.raises(BadRequest, match="max_latency: recipe 'w8a8' cannot hold it"):
        budgets.handed(plain, "0.5x", None, None)


@pytest.mark.slow
def test_the_recipe_holds_all_three_budgets_end_to_end() -> None:
    x = np.random.default_rng(5).normal(size=(60, 3, 8, 8)).astype(np.float32)
    labels = kit.run(allocating.residual(), {"x": x})["y"].argmax(1)
    recipe = Recipe.load("mixed").set(["allocate.samples=8", "allocate.measure=2"])
    data = {"x": x, "labels": labels}
    _, report = gp.compile(
        allocating.residual(), recipe, data, max_size="0.4x", max_drop=20.0, max_latency=50.0, gate=False, prove=False
    )
    assert report.metric["before"] - report.metric["after"] <= 20.0
    assert report.metric["allowed"] == 20.0
    assert report.size["weights_after"] <= 0.42 * report.size["weights_before"]
    with pytest.raises((BadRequest, GateError)):
        gp.compile(allocating.residual(), recipe, data, max_size="0.01x", prove=False)
