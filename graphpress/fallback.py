"""Hold an accuracy budget: put sites back to float, worst first, until the metric has lost no more than allowed."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphpress.errors import BadRequest, GateError
from graphpress.gate import compare
from graphpress.pipeline import Pipeline
from graphpress.recipe import Recipe

if TYPE_CHECKING:
    from graphpress.compiler import Compiled, _Job

RANK_SAMPLES = 32


def hold_drop(job: _Job, compiled: Compiled, max_drop: float) -> Compiled:
    """The compiled model with as few sites as needed back in float so that metric_before - metric_after <= max_drop.

    Sites are ranked once by the noise that each alone brings to the outputs; their number is doubled until the
    budget holds and then halved back to the fewest found to hold.

    Raises:
        BadRequest: There is nothing to measure with, or no plan to take sites from.
        GateError: Not even the model without any site holds the budget.
    """
    if job.evaluate is None:
        raise BadRequest("there is no metric", where="max_drop", fix="Put labels into the data, or give evaluate=.")
    if compiled.report.plan is None:
        raise BadRequest("the recipe decides nothing that could be taken back", where="max_drop")
    before = job.evaluate(job.original())
    floor = before - max_drop
    if compiled.metric is not None and compiled.metric >= floor:
        return _noted(compiled, before, max_drop, [])
    order = rank(job, compiled)
    best: tuple[Compiled, list[str]] | None = None
    low, count = 0, 1
    while best is None:
        count = min(count, len(order))
        trial = job.once(without(job.recipe, order[:count]))
        if trial.metric is not None and trial.metric >= floor:
            best = (trial, order[:count])
        elif count == len(order):
            raise GateError(
                f"the metric falls from {before:g} to {trial.metric:g} even with every site in float", where="max_drop"
            )
        else:
            low, count = count, 2 * count
    while count - low > 1:
        middle = (low + count) // 2
        trial = job.once(without(job.recipe, order[:middle]))
        if trial.metric is not None and trial.metric >= floor:
            best, count = (trial, order[:middle]), middle
        else:
            low = middle
    return _noted(*best[:1], before, max_drop, best[1])


def _noted(compiled: Compiled, before: float, max_drop: float, names: list[str]) -> Compiled:
    compiled.report.metric = {"before": before, "after": compiled.metric or 0.0, "allowed": max_drop}
    compiled.report.reverted = names
    return compiled


def rank(job: _Job, compiled: Compiled) -> list[str]:
    """Node names of the plan, the one that alone costs the most SQNR at the outputs first."""
    plan = compiled.report.plan
    assert plan is not None and job.held_out is not None
    samples = job.held_out.take(RANK_SAMPLES, job.seed)
    noise = {}
    for name in job.progress(plan.nodes(), "ranking sites", len(plan.nodes())):
        others = [n for n in plan.nodes() if n != name]
        model = _portable(job, without(job.recipe, others))
        outputs, _ = compare(job.original(), job.engine.execute(model), samples.batches(16))
        noise[name] = min((o.sqnr for o in outputs), default=float("inf"))
    return sorted(noise, key=lambda n: noise[n])


def _portable(job: _Job, recipe: Recipe) -> ir.Model:
    return Pipeline(recipe.passes, check_numbers=False).run(job.model, job.context())[0]


def without(recipe: Recipe, names: list[str]) -> Recipe:
    """The recipe with these nodes added to ``ignore`` of every pass that has such an option."""
    passes = [
        dataclasses.replace(p, ignore=(*p.ignore, *names)) if hasattr(p, "ignore") else p  # type: ignore[type-var]
        for p in recipe.passes
    ]
    return dataclasses.replace(recipe, passes=tuple(passes))
