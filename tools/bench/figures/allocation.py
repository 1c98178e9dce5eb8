"""Mixed precision against uniform formats: accuracy at equal bytes, latency at equal accuracy, how well predicted."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

import graphpress as gp
from graphpress.contracts import PassReport
from graphpress.graph import file_size
from graphpress.job import engine
from graphpress.job.latency import compare_latency
from graphpress.passes.allocate.allocate import CHECKED
from graphpress.passes.allocate.divergence import divergence
from graphpress.passes.allocate.edges import Probe
from graphpress.passes.allocate.trial import bytes_of
from graphpress.passes.allocate.watched import watch
from graphpress.pipeline import Pipeline
from graphpress.recipe import Recipe
from graphpress.report import report as reports
from graphpress.runner import Progress, Runner
from graphpress.target import Target
from graphpress.tools.bench.figures.base import Figure
from graphpress.tools.bench.latency_rank import context, spearman
from graphpress.tools.bench.task import Task
from graphpress.tools.bench.zoo import tasks

MODELS = "resnet20,resnet56,mobilenet_v1_0.75_192,ds_cnn,codelm"
SECONDS = 2.0  # of each latency
NOISE = 1.03  # two measurements of one thing differ by this much
FAST, FASTER = 1.15, 2  # so many times as fast as uniform W8A8, on so many models
SEARCH = 90.0  # seconds for sensitivity and search
RANK = 0.85


@dataclass(frozen=True)
class _Made:
    """A compiled model: the bytes of its file, as a budget counts them, and those of its tensors once it is lowered."""

    done: PassReport
    runner: Runner
    score: float
    bytes: int
    lowered: int


def measure(zoo: Path, progress: Progress) -> Iterator[Figure]:
    """The figures of this family, one by one."""
    faster = []
    with tempfile.TemporaryDirectory() as folder:
        for task in tasks(zoo, MODELS):
            source = gp.load(task.file(Path(folder)))
            yield _at_bytes(task, source, progress)
            figure, ratio = _at_accuracy(task, source, progress)
            faster.append(ratio)
            yield figure
            yield _ranked(task, source, progress)
            if task.name == "resnet56":
                yield _search(task, source, progress)
    count = sum(f >= FAST for f in faster)
    yield Figure(
        "models where the plan at W8A8's accuracy is at least 1.15x as fast as uniform W8A8", f"{FASTER} of 5",
        f"{count} of {len(faster)}", count >= FASTER, ", ".join(f"{f:.2f}x" for f in faster),
    )  # fmt: skip


def _made(task: Task, source: ir.Model, recipe: Recipe, progress: Progress) -> _Made:
    target, runtime = Target.load("ort-cpu"), engine.of_runtime("ort")
    ctx = context(task, source, progress)
    portable, done = Pipeline(recipe.passes, check_numbers=False).run(source, ctx)
    lowered = runtime.lower(portable, target)
    runner: Runner = runtime.execute(lowered)
    score = next(iter(task.scores(runner, _runner(source)).values()))
    plan = next(r for r in reversed(done) if r.plan is not None)
    return _Made(plan, runner, score, bytes_of(portable, file_size.names(source), ctx), reports.stored_bytes(lowered))


def _runner(model: ir.Model) -> Runner:
    runtime = engine.of_runtime("ort")
    found: Runner = runtime.execute(model)
    return found


def _mixed(**options: Any) -> Recipe:
    options = {"max_size": None, **options}
    return Recipe.load("mixed").set([f"allocate.{k}={'null' if v is None else v}" for k, v in options.items()])


def _float_score(task: Task, source: ir.Model) -> float:
    runner = _runner(source)
    return next(iter(task.scores(runner, runner).values()))


def _loss(task: Task, before: float, after: float) -> float:
    return before - after if task.higher else after - before


def _at_bytes(task: Task, source: ir.Model, progress: Progress) -> Figure:
    """The plan within the bytes of uniform 4-bit weights."""
    before, uniform = _float_score(task, source), _made(task, source, Recipe.load("w4a16"), progress)
    plan = _made(task, source, _mixed(max_size=uniform.bytes, objective="drop"), progress)
    lost, kept = _loss(task, before, uniform.score), _loss(task, before, plan.score)
    return Figure(
        f"{task.name}: loss of the plan at the bytes of w4a16", f"at most half of {lost:.4g}",
        f"{kept:.4g} at {plan.bytes / uniform.bytes:.3f}x the bytes",
        kept <= lost / 2 and plan.bytes <= uniform.bytes,
        f"float {before:.5g}, w4a16 {uniform.score:.5g}, plan {plan.score:.5g}; {_formats(plan)}; "
        f"lowered for ONNX Runtime {plan.lowered / uniform.lowered:.3f}x",
    )  # fmt: skip


def _at_accuracy(task: Task, source: ir.Model, progress: Progress) -> tuple[Figure, float]:
    """The fastest plan whose divergence is at most that of uniform W8A8."""
    uniform = _made(task, source, Recipe.load("w8a8"), progress)
    allowed = _divergence(task, source, uniform.runner, progress)
    plan = _made(task, source, _mixed(objective="latency", max_drop=allowed, measure=4), progress)
    found = compare_latency(uniform.runner, plan.runner, task.feeds(1), SECONDS)
    faster = 1 / found["ratio"]
    figure = Figure(
        f"{task.name}: speed of the plan at the accuracy of uniform W8A8", "never slower", f"{faster:.2f}x",
        faster * NOISE >= 1, f"w8a8 {uniform.score:.5g}, plan {plan.score:.5g}; {_formats(plan)}",
    )  # fmt: skip
    return figure, faster


def _divergence(task: Task, source: ir.Model, runner: Runner, progress: Progress) -> float:
    """As the pass measures it, on the samples that it measures compiled plans on."""
    ctx = context(task, source, progress)
    wanted = watch(source, ctx).natures
    inputs = [v.name or "" for v in source.graph.inputs]
    chunks = Probe(source, ctx, CHECKED).chunks([*wanted, *inputs])
    found = [divergence(v, runner({n: v[n] for n in runner.input_names}), wanted) for v in chunks]
    return sum(found) / len(found)


def _formats(made: _Made) -> str:
    found = made.done.metrics
    return ", ".join(f"{int(float(v))} {k.removeprefix('operators in ')}" for k, v in found.items() if "operators" in k)


def _ranked(task: Task, source: ir.Model, progress: Progress) -> Figure:
    found, error = spearman(task, source, progress)
    return Figure(
        f"{task.name}: predicted against measured latency of 20 random plans", f"Spearman >= {RANK}", f"{found:.3f}",
        found >= RANK, f"median error {100 * error:.1f} %",
    )  # fmt: skip


def _search(task: Task, source: ir.Model, progress: Progress) -> Figure:
    start = time.perf_counter()
    made = _made(task, source, _mixed(max_size="0.3x", measure=1, seconds=None), progress)
    seconds = made.done.seconds
    return Figure(
        f"{task.name}: sensitivity and search", f"under {SEARCH:.0f} s", f"{seconds:.1f} s", seconds < SEARCH,
        f"of {time.perf_counter() - start:.0f} s in all; every format of every site measured",
    )  # fmt: skip
