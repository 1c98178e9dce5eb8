"""Hold an accuracy budget: give sites 8 bits, or float, worst first, until the metric has lost no more than allowed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from graphpress.contracts import Ignores, Overrides, Skip
from graphpress.errors import BadRequest, GateError
from graphpress.job.gate import compare_outputs
from graphpress.job.job import Compiled, Job
from graphpress.job.metric import Evaluate
from graphpress.recipe import Recipe
from graphpress.types import AFFINE, Plan, Scheme

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
    """The compiled model with as few sites as needed in more bits so that metric_before - metric_after <= max_drop.

    Sites of less than 8 bits get 8; where that is not enough even for all of them, sites go back to float, and of the
    others as few as needed get 8. They are ranked once by the noise that each alone brings to the outputs; their number
    is doubled until the budget holds and then halved back to the fewest found to hold: for n sites at most
    2 log2(n) + 4 compilations, twice as many where some go back to float and others have less than 8 bits.

    Raises:
        BadRequest: There is nothing to measure with, or no plan to take sites from.
        GateError: Not even the model without any site holds the budget.
    """
    check_measurable(job.evaluate, max_drop)
    assert job.evaluate is not None
    plan = compiled.report.plan
    if plan is None:
        raise BadRequest("the recipe decides nothing that could be taken back", where="max_drop")
    before = job.evaluate(job.original())
    if compiled.metric is not None and compiled.metric >= before - max_drop:
        return _noted(compiled, before, max_drop)
    order = rank(job, compiled)
    search, low = _Search(job, before - max_drop, compiled.metric or 0.0), list[str]()
    if sum(isinstance(p, Overrides) for p in job.recipe.passes) == 1:  # else it is not clear whose the sites are
        low = [n for n in order if eight_bits(plan, [n])]

    def recipe(wide: Sequence[str], floats: Sequence[str] = ()) -> Recipe:
        return without(in_eight_bits(job.recipe, plan, wide), floats)

    made, floats = search.trial(recipe(low)) if low else None, list[str]()
    if made is None:
        found = search.fewest(lambda names: recipe(low, names), order)
        if found is None:
            fell = f"the metric falls from {before:g} to {search.last:g}"
            raise GateError(f"{fell} even with every site in float", where="max_drop")
        made, floats = found
    wide = [n for n in low if n not in floats]
    if wide:
        least = -1 if floats else 0  # without floats none is not enough
        made, wide = search.fewest(lambda names: recipe(names, floats), wide, made, least) or (made, wide)
    return _noted(made, before, max_drop, floats, wide)


@dataclasses.dataclass
class _Search:
    """Compilations that are measured.

    Attributes:
        floor: Of the metric.
        last: The metric of what was not enough.
    """

    job: Job
    floor: float
    last: float

    def trial(self, recipe: Recipe) -> Compiled | None:
        """What comes of the recipe if that holds."""
        made = self.job.once(recipe)
        if made.metric is not None and made.metric >= self.floor:
            return made
        self.last = made.metric or 0.0
        return None

    def fewest(
        self, change: Callable[[list[str]], Recipe], order: Sequence[str], whole: Compiled | None = None, few: int = 0
    ) -> tuple[Compiled, list[str]] | None:
        """The fewest first names of ``order`` found that are enough.

        Args:
            change: The recipe with some of them changed.
            order: Names.
            whole: What all of them gave, if that is known to hold.
            few: How many are known not to be enough.
        """
        best = None if whole is None else (whole, list(order))
        enough, doubling = len(order) + (whole is None), True
        while enough - few > 1:
            count = min(max(2 * few, few + 1), enough - 1) if doubling else (few + enough) // 2
            names = list(order[:count])
            if (made := self.trial(change(names))) is not None:
                best, enough, doubling = (made, names), count, False
            else:
                few = count
        return best


def _noted(
    compiled: Compiled, before: float, max_drop: float, names: Sequence[str] = (), wide: Sequence[str] = ()
) -> Compiled:
    compiled.report.metric = {"before": before, "after": compiled.metric or 0.0, "allowed": max_drop}
    compiled.report.reverted, compiled.report.widened = list(names), list(wide)
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


def eight_bits(plan: Plan, names: Sequence[str]) -> dict[str, str]:
    """What of these nodes is stored in less than 8 bits, as ``contracts.Overrides`` take it, in 8."""
    found = {site: scheme for name in names for site, scheme in plan.of(name).items() if scheme.bits < 8}
    return {str(site): _eight(scheme) for site, scheme in found.items()}


def _eight(scheme: Scheme) -> str:
    if scheme.quantizer != AFFINE:
        return f"int8 sym minmax quantizer={AFFINE}"
    return "uint8" if scheme.dtype.startswith("u") else "int8"


def in_eight_bits(recipe: Recipe, plan: Plan, names: Sequence[str]) -> Recipe:
    """The recipe with these nodes in 8 bits where the plan has less."""
    sites = eight_bits(plan, names)
    passes = tuple(p.overriding(sites) if isinstance(p, Overrides) else p for p in recipe.passes)
    return dataclasses.replace(recipe, passes=passes)
