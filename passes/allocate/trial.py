"""Plans compiled and measured for real: bytes, latency beside the float model, divergence, the user's metric."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import PassReport
from graphpress.graph import file_size
from graphpress.job.latency import compare_latency
from graphpress.passes.allocate.aspects import Judge
from graphpress.passes.allocate.edges import Probe, Values
from graphpress.passes.allocate.evaluated import evaluated
from graphpress.passes.allocate.formats import FLOAT
from graphpress.passes.allocate.parts import Parts
from graphpress.passes.allocate.problem import Problem, Totals
from graphpress.passes.allocate.solve import solve
from graphpress.passes.quantize.apply_plan import ApplyPlan
from graphpress.report import report as reports
from graphpress.runner import Runner
from graphpress.types import Plan

SECONDS = 0.6  # of latency measurement a plan


@dataclass(frozen=True)
class Trial:
    """One plan, what was predicted of it, and what it really is.

    Attributes:
        formats: Operator -> format.
        plan: The same as sites and schemes.
        predicted: Costs by the tables.
        measured: Costs of the compiled model; latency is the predicted one where nothing was timed.
        lost: What the user's metric lost; None without a metric.
    """

    formats: Mapping[str, str]
    plan: Plan
    predicted: Totals
    measured: Totals
    lost: float | None = None


@dataclass
class Bench:
    """Measures plans on one model, each once.

    Attributes:
        parts: Of the model.
        problem: What the plans were searched in.
        ctx: Runtimes, metric.
        probe: The samples of the divergence.
        timed: Whether latency matters.
        judge: What is lost, in the unit of the problem.
        known: Names that the user's model has: then sizes are those of the file, not of the tensors alone.
    """

    parts: Parts
    problem: Problem
    ctx: Context
    probe: Probe
    timed: bool
    judge: Judge = field(default_factory=Judge)
    known: Collection[str] | None = None
    trials: dict[tuple[str, ...], Trial] = field(default_factory=dict)

    @cached_property
    def float_runner(self) -> Runner:
        return self.parts.runner(self.parts.space.model)

    @cached_property
    def base(self) -> float:
        """The metric of the float model."""
        return evaluated(self.ctx, self.float_runner, "the float model")

    @cached_property
    def _outputs(self) -> list[tuple[Values, Values]]:
        names = list(self.parts.compared)
        inputs = [v.name or "" for v in self.parts.space.model.graph.inputs]
        found = self.probe.chunks([*names, *inputs])
        return [({n: v[n] for n in inputs if n in v}, {n: v[n] for n in names}) for v in found]

    def build(self, formats: Mapping[str, str]) -> tuple[Plan, ir.Model]:
        """The plan of some formats, and the model compiled by it."""
        plan = self.parts.space.plan({n: f for n, f in formats.items() if f != FLOAT})
        clone = self.parts.space.model.clone()
        ApplyPlan(plan).run(clone, replace(self.ctx, oracle=None), PassReport())
        return plan, self.parts.fold(clone)

    def run(self, chosen: Sequence[int]) -> Trial:
        """Compile and measure an assignment."""
        key = tuple(self.problem.formats(chosen).values())
        if key not in self.trials:
            self.trials[key] = self._run(chosen)
        return self.trials[key]

    def _run(self, chosen: Sequence[int]) -> Trial:
        formats = self.problem.formats(chosen)
        plan, model = self.build(formats)
        predicted = self.problem.totals(self.problem.chosen(formats, set(plan.nodes())))
        runner = self.parts.runner(model)
        latency = predicted.latency
        if self.timed:
            feeds = self.probe.sample()
            latency = self.problem.latency * compare_latency(self.float_runner, runner, feeds, SECONDS)["ratio"]
        measured = Totals(self._divergence(runner), float(bytes_of(model, self.known, self.ctx)), latency)
        lost = None
        if self.ctx.evaluate is not None:
            lost = self.base - evaluated(self.ctx, runner, "a compiled plan")
        return Trial(formats, plan, predicted, measured, lost)

    def weigh(self) -> None:
        """Learn from the smallest plan what nodes and names add to the file, where that counts."""
        if self.known is None:
            return
        smallest = solve(self.problem, "size", {}).chosen
        trial = self.run(smallest)
        added = max(trial.measured.size - trial.predicted.size, 0.0)
        self.problem = replace(self.problem, added=added)
        for key, t in self.trials.items():
            self.trials[key] = replace(t, predicted=replace(t.predicted, size=t.predicted.size + added))

    def _divergence(self, runner: Runner) -> float:
        found = []
        for feeds, before in self._outputs:
            after = runner({n: feeds[n] for n in runner.input_names})
            found.append(self.judge.whole(before, after, self.parts.compared))
        return sum(found) / max(len(found), 1)


def bytes_of(model: ir.Model, known: Collection[str] | None, ctx: Context) -> int:
    """Of its tensors, or, with the names that the user's model has, of its file, lowered where there is a target."""
    if known is None:
        return reports.stored_bytes(model)
    return file_size.shortened_bytes(ctx.lower(model) if ctx.lower is not None else model, known)
