"""Hold an accuracy budget: put sites back to float, worst first, until the metric has lost no more than allowed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from graphpress.contracts import Ignores, Skip
from graphpress.errors import BadRequest, GateError
from graphpress.job.gate import compare_outputs
from graphpress.job.job import Compiled, Job
from graphpress.job.metric import Evaluate
from graphpress.recipe import Recipe

RANK_SAMPLES = 32
REVERTED = "back in float to hold the budget"


def check_measurable(evaluate: Evaluate | None, max_drop: float) -> None:
    """Refuse a budget that cannot be held against anything, before any work is done.

    Raises:
        BadRequest: There is nothing to measure with, or the budget is no number from 0 up.
    """
    if not 0 <= max_drop < math.inf:
        raise BadRequest(f"{max_drop:g} is no budget", where="max_drop", fix="Give a number from 0 up.")
    if evaluate is None:
        raise BadRequest(
            "there is no metric", where="max_drop", fix="Put labels into the data, or give evaluate= (--evaluate)."
        )


def hold_drop(job: Job, compiled: Compiled, max_drop: float) -> Compiled:
    """The compiled model with as few sites as needed back in float so that metric_before - metric_after <= max_drop.

    Sites are ranked once by the noise that each alone brings to the outputs; their number is doubled until the
    budget holds and then halved back to the fewest found to hold: for n sites at most 2 log2(n) + 3 compilations.

    Raises:
        BadRequest: There is nothing to measure with, or no plan to take sites from.
        GateError: Not even the model without any site holds the budget.
    """
    check_measurable(job.evaluate, max_drop)
    assert job.evaluate is not None
    if compiled.report.plan is None:
        raise BadRequest("the recipe decides nothing that could be taken back", where="max_drop")
    before = job.evaluate(job.original())
    floor = before - max_drop
    if compiled.metric is not None and compiled.metric >= floor:
        return _noted(compiled, before, max_drop, [])
    order = rank(job, compiled)
    last = compiled.metric or 0.0
    best: tuple[Compiled, list[str]] | None = None
    few, enough = 0, len(order) + 1  # numbers of sites that are too few, and that hold
    for _ in range(2 * len(order).bit_length() + 1):
        if enough - few <= 1:
            break
        count = min(max(2 * few, 1), len(order)) if best is None else (few + enough) // 2
        trial = job.once(without(job.recipe, order[:count]))
        if trial.metric is not None and trial.metric >= floor:
            best, enough = (trial, order[:count]), count
        else:
            few, last = count, trial.metric or 0.0
    if best is None:
        raise GateError(f"the metric falls from {before:g} to {last:g} even with every site in float", where="max_drop")
    return _noted(best[0], before, max_drop, best[1])


def _noted(compiled: Compiled, before: float, max_drop: float, names: list[str]) -> Compiled:
    compiled.report.metric = {"before": before, "after": compiled.metric or 0.0, "allowed": max_drop}
    compiled.report.reverted = names
    for report in compiled.report.passes:
        report.skips = [Skip(s.where, REVERTED) if s.where in names else s for s in report.skips]
    return compiled


def rank(job: Job, compiled: Compiled) -> list[str]:
    """Node names of the plan, the one that alone costs the most SQNR at the outputs first."""
    plan = compiled.report.plan
    assert plan is not None and job.held_out is not None
    samples = job.held_out.take(RANK_SAMPLES, job.seed)
    noise = {}
    for name in job.progress(plan.nodes(), "ranking sites", len(plan.nodes())):
        others = [n for n in plan.nodes() if n != name]
        model = job.rewrite(without(job.recipe, others), check_numbers=False)[1]
        outputs, _ = compare_outputs(job.original(), job.engine.execute(model, target=job.target), samples.batches(16))
        noise[name] = min((o.sqnr for o in outputs), default=float("inf"))
    return sorted(noise, key=lambda n: noise[n])


def without(recipe: Recipe, names: Sequence[str]) -> Recipe:
    """The recipe with these nodes in float in every pass that can leave nodes alone (``contracts.Ignores``)."""
    passes = tuple(p.without(names) if isinstance(p, Ignores) else p for p in recipe.passes)
    return dataclasses.replace(recipe, passes=passes)
