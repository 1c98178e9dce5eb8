"""How well the latency of a plan is predicted from that of its operators: rank correlation over random plans."""

from __future__ import annotations

import statistics
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.job import job
from graphpress.observe.data import CalibrationData
from graphpress.observe.memo import Recall
from graphpress.passes.allocate import formats, ties
from graphpress.passes.allocate import model as tables
from graphpress.passes.allocate.edges import Probe
from graphpress.passes.allocate.meter import LatencyMeter, alternate
from graphpress.passes.allocate.parts import Parts
from graphpress.passes.allocate.sensitivity import Sensitivity
from graphpress.passes.allocate.space import Space, explore
from graphpress.passes.allocate.store import Cache
from graphpress.passes.allocate.trial import Bench
from graphpress.pipeline import Pipeline
from graphpress.recipe import Recipe
from graphpress.runner import Progress
from graphpress.target import Target
from graphpress.tools.bench.task import Task

PLANS, SECONDS = 20, 1.0


def spearman(task: Task, source: ir.Model, progress: Progress, seed: int = 0) -> tuple[float, float]:
    """(rank correlation, median relative error) of predicted and measured latency over random plans.

    A plan draws first how likely integer kernels are, then the format of each group, so that plans range from nearly
    float to nearly all integer.
    """
    from scipy.stats import spearmanr

    bench = _bench(task, source, progress)
    base = alternate({"float": (bench.float_runner, dict(task.feeds(1)))}, SECONDS)["float"]
    problem = replace(bench.problem, latency=base)
    rng = np.random.default_rng(seed)
    predicted, measured = [], []
    for _ in progress(range(PLANS), "random plans", PLANS):
        choice = _random(bench.parts.space, rng)
        plan, model = bench.build(choice)
        predicted.append(problem.totals(problem.chosen(choice, set(plan.nodes()))).latency)
        runners = {"float": bench.float_runner, "plan": bench.parts.runner(model)}
        got = alternate({k: (r, dict(task.feeds(1))) for k, r in runners.items()}, SECONDS / 2)
        measured.append(got["plan"] / got["float"] * base)
    errors = [abs(p / m - 1) for p, m in zip(predicted, measured, strict=True)]
    return float(spearmanr(predicted, measured).statistic), statistics.median(errors)


def _bench(task: Task, source: ir.Model, progress: Progress) -> Bench:
    """A clean model with its operators timed, and no accuracy measured."""
    ctx = context(task, source, progress)
    clean, _ = Pipeline(Recipe.load("clean").passes, check_numbers=False).run(source)
    space = explore(clean, ctx.target, formats.DEFAULT, (), ties.KINDS)
    parts, probe = Parts(space, ctx), Probe(clean, ctx, 4)
    values = probe.one([v for p in parts.parts.values() for v in (*p.inputs, *p.outputs)])
    light = dict.fromkeys(space.light, (space.static or "",))
    times = LatencyMeter(parts, ctx, Cache(None, "latency"), values).run({**space.wanted(), **light})
    nothing = {n: dict.fromkeys(row, 0.0) for n, row in space.wanted().items()}
    problem = tables.build(parts, tables.Tables(Sensitivity(nothing), tables.sizes(parts), times))
    return Bench(parts, problem, ctx, probe, timed=True)


def context(task: Task, source: ir.Model, progress: Progress) -> Context:
    """What a compilation for ONNX Runtime has, all of the task's calibration data, and no labels."""
    data = CalibrationData.from_arrays({k: v for k, v in task.data().items() if k != "labels"})
    found = job.context(Target.load("ort-cpu"), data.bind(source), progress=progress)
    return replace(found, calibrate=Recall())


def _random(space: Space, rng: np.random.Generator) -> dict[str, str]:
    """A format for each group: one with quantized activations with a likelihood that the plan draws first."""
    share, found = rng.uniform(), dict[str, str]()
    for group in space.groups:
        fast = [f for f in group.formats if f != formats.FLOAT and formats.parse(f).mode != "weight"]
        others = [f for f in group.formats if f not in fast]
        drawn = str(rng.choice(fast if fast and rng.uniform() < share else others))
        found |= dict.fromkeys(group.nodes, drawn)
    return found
