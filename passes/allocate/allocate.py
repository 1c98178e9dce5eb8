"""The pass that decides the format of every operator with weights: Pareto search over measured costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Budget, HoldsBudgets, Ignores, Pass, PassReport, Skip
from graphpress.errors import BadRequest
from graphpress.graph import file_size, half_storage
from graphpress.observe.memo import Recall
from graphpress.passes.allocate import amounts, aspects
from graphpress.passes.allocate import model as tables
from graphpress.passes.allocate.choose import Goal, choose
from graphpress.passes.allocate.edges import Probe
from graphpress.passes.allocate.formats import DEFAULT, FLOAT
from graphpress.passes.allocate.meter import LatencyMeter, Times, alternate
from graphpress.passes.allocate.parts import Parts
from graphpress.passes.allocate.picture import picture
from graphpress.passes.allocate.problem import Problem
from graphpress.passes.allocate.sensitivity import Measurer, Sensitivity
from graphpress.passes.allocate.space import Space, explore
from graphpress.passes.allocate.store import Cache
from graphpress.passes.allocate.ties import KINDS
from graphpress.passes.allocate.trial import Bench, Trial, bytes_of
from graphpress.passes.allocate.watched import watch
from graphpress.passes.quantize.apply_plan import ApplyPlan
from graphpress.passes.quantize.wide_range import find
from graphpress.types import Numerics, Stage

CHECKED = 256  # samples that compiled plans are compared on: they are few, and what was searched on flatters them

_SERVES = "of the formats tried float serves the budget best"


@dataclass(frozen=True)
class Allocate(Pass, HoldsBudgets, Ignores):
    """Give each operator with weights the format that serves a budget best, and write that plan as ``quantize`` does.

    The accuracy that each format at each operator costs, its bytes and its latency on the target are measured; the
    search is exact on these figures; the best plans are compiled and measured, and the best of them is taken. Latency
    is measured where it is asked for, as objective or budget. "Leave it in float" is always a candidate.

    Attributes:
        formats: What to choose from besides float: names such as w8a8, w8a8-dynamic, w4a16-g64, w2a16-g32-asym.
        objective: What to make least: drop, latency or size; auto: drop if latency or size is limited, else latency
            (size where there is no target to run on).
        max_latency: Of one sample on the target: a share of the float graph's (0.6x), or milliseconds.
        max_size: Of the file: a share of the float graph's in float32 (0.3x), or bytes.
        usual_size: What holds where no budget is given, as far as there is a plan: a share, or bytes, of the tensors.
        max_drop: Loss allowed, in points of the metric where there is one, else in the unit of the sensitivity.
        sensitivity: kl (divergence of the outputs in nats), metric (points lost), fisher (an estimate of kl from one
            backward pass; needs torch), gradient (the norm of each weight's gradient times how far a format moves it,
            likewise; blind to formats of activations).
        samples: Calibration samples that sensitivity is measured on, at most.
        seconds: Time for that; operators that it does not reach are estimated by fisher. None: no limit.
        measure: About how many plans to compile and measure.
        metrics: Selector -> what its operators are judged by (ViDiT-Q-MP): ``divergence`` of all outputs, the name of
            one output, or ``module:function``, a function of the outputs before and after (by name) that says what was
            lost. Each selection gets its part of the size; with sensitivity kl, and all is measured. Beside names,
            ``kind:self-attention``, ``kind:temporal-attention`` (over frames, where others go over the positions in
            one), ``kind:cross-attention`` and ``kind:feed-forward`` select layers by data flow.
        ties: What makes operators one decision: scales, weights, inputs, residual.
        ignore: Selectors of operators that stay float.
        cache: A folder for what was measured: accuracy by model, data and format, latency by machine, runtime version
            and shape. None: nothing is kept.
    """

    formats: tuple[str, ...] = DEFAULT
    objective: Literal["auto", "drop", "latency", "size"] = "auto"
    max_latency: float | str | None = None
    max_size: float | str | None = None
    usual_size: float | str | None = None
    max_drop: float | None = None
    sensitivity: Literal["kl", "metric", "fisher", "gradient"] = "kl"
    samples: int = 32
    seconds: float | None = 60.0
    measure: int = 3
    metrics: Mapping[str, str] = field(default_factory=dict)
    ties: tuple[str, ...] = KINDS
    ignore: tuple[str, ...] = ()
    cache: str | None = None

    name = "allocate"
    numerics = Numerics.LOSSY
    needs = (Stage.FLOAT,)
    gives = Stage.QDQ

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        """Rewrite ``model`` by the plan found.

        Raises:
            BadRequest: No budget, one that no plan keeps, no data, a format or tie that does not exist, a metric that
                fails, or a latency that nothing can measure.
        """
        ctx = replace(ctx, calibrate=ctx.calibrate or Recall())
        timed = self._check(ctx)
        watched = watch(model, ctx)
        wide, said = find(watched.model, ctx)
        space = explore(watched.model, ctx.target, self.formats, self.ignore, self.ties, wide)
        parts, probe = Parts(space, ctx, watched.natures), Probe(watched.model, ctx, self.samples)
        judge = aspects.read(self.metrics, space, watched.natures)
        seconds = None if self.metrics else self.seconds
        store = self._store("sensitivity")
        found = Measurer(parts, ctx, self.sensitivity, self.samples, seconds, store, judge).run()
        judge, problem = judge.decoupled(self._problem(parts, probe, ctx, found, timed))
        known = file_size.names(model) if self.max_size is not None else None
        problem = replace(problem, size=float(bytes_of(watched.model, known, replace(ctx, lower=None))))
        goal = self._goal(problem, ctx, timed, problem.size + half_storage.saved(model))
        bench = Bench(parts, problem, ctx, Probe(watched.model, ctx, max(CHECKED, self.samples)), timed, judge, known)
        bench.weigh()
        taken = choose(bench, goal)
        report.skips += [
            *space.skips,
            *watched.left_out,
            *(Skip(n, f"{f}: {why}") for (n, f), why in found.refused.items()),
            *(Skip(n, _SERVES) for n, f in taken.formats.items() if f == FLOAT),
        ]
        ApplyPlan(taken.plan).run(model, ctx, report)
        report.warnings += [*said, *self._unmet(goal, taken, problem)]
        report.metrics |= _metrics(problem, taken, bench, found, space)
        if not self.asked:
            report.metrics["budget"] = f"max_size {self.usual_size}, the recipe's own: nobody gave one"
        cost = "latency" if timed else "size"
        asked = {"x": goal.budgets.get(cost), "y": None if goal.points else goal.drop}
        report.exhibits.append(picture(bench.problem, bench, taken, cost, asked))

    def with_budgets(self, max_latency: Budget, max_size: Budget, max_drop: float | None) -> Allocate:
        """The pass with these budgets."""
        return replace(self, max_latency=max_latency, max_size=max_size, max_drop=max_drop)

    @property
    def asked(self) -> bool:
        """Whether a budget was given: the recipe's own is none."""
        return (self.max_latency, self.max_size, self.max_drop) != (None, None, None)

    @property
    def _size(self) -> Budget:
        return self.max_size if self.asked else self.usual_size

    def _unmet(self, goal: Goal, taken: Trial, problem: Problem) -> list[Skip]:
        """A warning where the recipe's own budget is held by no plan."""
        if goal.asked or taken.measured.size <= goal.budgets["size"]:
            return []
        share = taken.measured.size / problem.size
        why = f"no plan keeps the recipe's own budget, max_size {self.usual_size}: one of about the smallest is taken"
        return [Skip("max_size", f"{why}, of {share:.2f}x. Give max_size, max_latency or max_drop to have another.")]

    def _check(self, ctx: Context) -> bool:
        """Refuse what cannot be asked before any work is done; whether latency is to be measured."""
        for option in ("max_latency", "max_size", "usual_size"):
            amounts.absolute(getattr(self, option), 1.0, option)
        amounts.drop(self.max_drop)
        if not self.asked and self.usual_size is None:
            raise BadRequest(
                "there is no budget", where="allocate", fix="Give max_latency (0.6x), max_size (0.3x) or max_drop."
            )
        if self.samples < 1 or self.measure < 1:
            raise BadRequest("must be at least 1", where="allocate: options 'samples' and 'measure'")
        if self.metrics and self.sensitivity != "kl":
            why = "operators that are judged by metrics of their own are measured on the outputs"
            raise BadRequest(why, where="allocate: option 'metrics'", fix="Set sensitivity to kl.")
        if self.metrics and self.max_drop is not None and ctx.evaluate is None:
            why = "losses by different metrics have no common unit that max_drop could be in"
            raise BadRequest(why, where="allocate: option 'metrics'", fix="Give a metric, or limit size or latency.")
        alone = self.max_latency is None and self._size is None
        timed = self.max_latency is not None or self.objective == "latency"
        timed |= self.objective == "auto" and alone and ctx.deploy is not None
        if timed:
            ctx.need("deploy", "allocate", "latency needs a target to be measured on", "limit max_size instead")
        return timed

    def _store(self, name: str) -> Cache:
        return Cache(self.cache, name)

    def _problem(self, parts: Parts, probe: Probe, ctx: Context, found: Sensitivity, timed: bool) -> Problem:
        space, times, latency = parts.space, Times(), 0.0
        if timed:
            values = probe.one([v for p in parts.parts.values() for v in (*p.inputs, *p.outputs)])
            static = dict.fromkeys(space.light, (space.static or "",))
            times = LatencyMeter(parts, ctx, self._store("latency"), values).run({**_possible(space, found), **static})
            feeds = probe.sample()
            latency = alternate({"float": (ctx.need("deploy", "allocate")(space.model), feeds)}, 0.5)["float"]
        return tables.build(parts, tables.Tables(found, tables.sizes(parts), times, latency))

    def _goal(self, problem: Problem, ctx: Context, timed: bool, whole: float) -> Goal:
        limits = {
            "latency": amounts.absolute(self.max_latency, problem.latency, "max_latency"),
            "size": amounts.absolute(self._size, whole, "max_size"),
        }
        held = {k: v for k, v in limits.items() if v is not None}
        objective: str = self.objective
        if objective == "auto":
            objective = "drop" if held else ("latency" if timed else "size")
        return Goal(objective, held, amounts.drop(self.max_drop), ctx.evaluate is not None, self.measure, self.asked)


def _possible(space: Space, found: Sensitivity) -> dict[str, tuple[str, ...]]:
    """Formats of each operator that can be written there."""
    return {n: tuple(f for f in row if (n, f) not in found.refused) for n, row in space.wanted().items()}


def _metrics(problem: Problem, taken: Trial, bench: Bench, found: Sensitivity, space: Space) -> dict[str, float | str]:
    used = list(taken.formats.values())
    counts = {f"operators in {f}": float(used.count(f)) for f in dict.fromkeys(used)}
    all_of = sum(len(v) for v in space.wanted().values())
    said: dict[str, Any] = {
        "groups": float(len(space.groups)), "plans compiled": float(len(bench.trials)),
        "size": taken.measured.size / problem.size, "size predicted": taken.predicted.size / problem.size,
        "divergence": taken.measured.drop, "divergence predicted": taken.predicted.drop,
    }  # fmt: skip
    if bench.timed:
        said["latency"] = taken.measured.latency / problem.latency
        said["latency predicted"] = taken.predicted.latency / problem.latency
    if taken.lost is not None:
        said["metric lost"] = taken.lost
    if found.estimated:
        how = f", {found.how}" if found.how else ""
        said["sensitivity"] = f"estimated for {len(found.estimated)} of {all_of}: the time was up{how}"
    return {**said, **counts}
