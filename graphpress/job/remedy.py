"""What would make a compilation pass its gate: sites put back to float, or another recipe, each measured by the gate.

Only after a failure, in a fixed order, and within a budget: at most ``TRIALS`` compilations, none begun after a minute
or, where that is longer, five times what the one that failed took. Where that clock cut the search short, it is said.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from graphpress.errors import GateError, GraphpressError
from graphpress.job.gate import GateResult
from graphpress.job.hold_drop import without
from graphpress.job.job import Compiled, Job
from graphpress.job.own_noise import own_noise, rounding
from graphpress.observe.memo import Recall
from graphpress.passes.quantize.quantize import Quantize
from graphpress.recipe import Recipe
from graphpress.report import diagnosis
from graphpress.types import Plan, Role

TRIALS = 6
SECONDS, TIMES = 60.0, 5.0
_SITES = 32  # that are quantized alone, those first that add most by what their inputs tell
_SAMPLES = 2  # held-out ones, for that
_SHARE = 0.4  # of the budget that goes to that
_BLAMED = 5
_FINE = 8  # bits of weights from which another way of rounding them does not help


def find(job: Job, compiled: Compiled) -> None:
    """Fill in ``blame`` and ``remedy`` of a failed gate."""
    report, plan = compiled.report, compiled.report.plan
    if report.gate.passed or job.held_out is None or plan is None or not plan:
        return
    took = sum(job.clock.seconds.get(phase, 0.0) for phase in ("passes", "lower", "gate"))
    search = _Search(job, compiled, plan, max(SECONDS, TIMES * took))
    with job.clock.phase("blame"):
        search.rank()
        report.gate.remedy = list(search.sentences())


def failure(job: Job, compiled: Compiled) -> GateError:
    """What to raise, with what was found."""
    find(job, compiled)
    return diagnosis.gate_error(compiled.lowered, compiled.report)


@dataclass
class _Search:
    """What is left of the budget, and what was found."""

    job: Job
    compiled: Compiled
    plan: Plan
    seconds: float
    tried: int = 0
    start: float = field(default_factory=time.monotonic)
    unseen: int = 0  # sites for which the time did not suffice
    untried: int = 0  # compilations likewise

    def rank(self) -> None:
        """Blame sites by what each does alone; those beyond the budget, by what they add to what comes in."""
        report = self.compiled.report
        assert self.job.held_out is not None
        if self.job.calibrate is None:
            self.job.calibrate = Recall()
        added = {row.node: row.added for row in report.sites}
        sites = sorted(rounding(self.plan, self.compiled.clean), key=lambda n: -added.get(n, 0.0))[:_SITES]
        size = self.job.held_out.binding.exact if self.job.held_out.binding else None
        samples, limit = self.job.held_out.take(size or _SAMPLES, self.job.seed), self.seconds * _SHARE
        try:
            found = own_noise(self.compiled.clean, self.plan, sites, samples, self.job.context(), limit)
        except GraphpressError:  # a later pass made what the plan is of: what their inputs tell stays
            return
        self.unseen = len(sites) - len(found)
        report.gate.blame = sorted(found.items(), key=lambda kv: kv[1])[:_BLAMED]

    def sentences(self) -> Iterator[str]:
        """The one change that helps, or that none does; then a recipe, or what to do where none was found."""
        names = [n for n, _ in self.compiled.report.gate.blame]
        kept = self._kept(names[:1])
        singles = self.tried
        recipe = next(self._recipes(), None)
        if kept is None:
            before = self.tried
            kept = self._kept(names[1:2])
            singles += self.tried - before
        if kept is None and singles:
            yield f"No single site is enough ({'the first two were' if singles > 1 else 'the first was'} tried)"
        kept = kept or (self._kept(names) if len(names) > 1 else None)
        yield from (s for s in (kept, recipe) if s is not None)
        if self.unseen or self.untried:
            left = [f"{n} {what}" for n, what in ((self.unseen, "sites"), (self.untried, "compilations")) if n]
            yield f"The search was cut off after {self.seconds:.0f} s ({' and '.join(left)} left out)"

    def _kept(self, names: list[str]) -> str | None:
        """What putting these sites back to float gives, where it is enough."""
        passed = self._try(without(self.job.recipe, names)) if names else None
        together = f"the {len(names)} sites most to blame" if len(names) > 1 else repr((*names, "")[0])
        return f"Keep {together} in float (quantize.ignore): then {passed}" if passed else None

    def _recipes(self) -> Iterator[str]:
        for name in self._others():
            other = Recipe.load(name)
            if passed := self._try(dataclasses.replace(other, gate=self.job.recipe.gate)):
                yield f"Recipe {name} passes: {passed}"
        if any(isinstance(p, Quantize) for p in self.job.recipe.passes):
            yield "Recipe mixed gives each operator the bits that it needs (not tried)"

    def _others(self) -> Iterator[str]:
        """Recipes against what is the matter: activations, or weights."""
        passes = {p.name: p for p in self.job.recipe.passes}
        if Quantize.name not in passes:
            return
        weights = min((s.bits for site, s in self.plan.items() if site.role is Role.WEIGHT), default=_FINE)
        activations = min((s.bits for site, s in self.plan.items() if site.role is not Role.WEIGHT), default=0)
        if activations and self._try(self._floating()):
            if activations >= _FINE <= weights and "smooth" not in passes:
                yield "w8a8-smooth"
            if weights < _FINE and (activations < _FINE or "rotate" not in passes):
                yield "w4a8-rot"
            yield "w8a16" if weights >= _FINE else "w4a16-gptq"
        elif weights < _FINE:
            if not activations and "gptq" not in passes:
                yield "w4a16-gptq"
            yield "w8a8" if activations else "w8a16"

    def _floating(self) -> Recipe:
        """The recipe with all activations in float."""
        passes = (
            dataclasses.replace(p, mode="weight", activation=None, activation_granularity="per_tensor", sites={})
            if isinstance(p, Quantize)
            else p
            for p in self.job.recipe.passes
        )
        return dataclasses.replace(self.job.recipe, passes=tuple(passes))

    def _try(self, recipe: Recipe) -> str | None:
        """What the gate says of a recipe that passes; None where it fails, or the budget is spent."""
        if self.tried + self.untried >= TRIALS:
            return None
        if time.monotonic() - self.start > self.seconds:
            self.untried += 1
            return None
        (_,) = self.job.progress([recipe.name], f"blame, trial {self.tried + 1} of at most {TRIALS}", 1)
        self.tried += 1
        try:
            found = self.job.judged(recipe)
        except GraphpressError:  # it does not apply to this model
            return None
        return _reached(self.compiled.report.gate, found) if found.passed else None


def _reached(before: GateResult, after: GateResult) -> str:
    """What became of the first figure that failed."""
    now = {o.name: o for o in after.outputs}
    for output in before.outputs:
        failed = [f for f in output.figures if str(f.verdict) == "failed"]
        new = now[output.name]
        for figure in failed:
            value = next((f.value for f in new.figures if f.what == figure.what), None)
            if value is not None:
                return f"{figure.what} {value:.3g}"
    return f"{min(o.sqnr for o in after.outputs):.1f} dB"
