"""The face: run a recipe on a model, lower, gate, prove. Everything the command line does stands here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphpress.borrowed import Step
from graphpress.errors import BadRequest, nearest
from graphpress.job import budgets, hold_drop, remedy
from graphpress.job.evaluated import EvaluateLike
from graphpress.job.job import Clock, Compiled, Job
from graphpress.job.models import ModelLike, as_model, as_target
from graphpress.observe.memo import Recall
from graphpress.observe.sources import said
from graphpress.observe.sources.taken import DataLike, calibration_data
from graphpress.pipeline import stage_of
from graphpress.recipe import Recipe
from graphpress.report.report import Report
from graphpress.runner import Progress, quiet
from graphpress.target import Target
from graphpress.types import Stage


def compile(
    model: ModelLike,
    recipe: str | Path | Mapping[str, Any] | Recipe | Sequence[Step],
    data: DataLike = None,
    target: str | Target = "ort-cpu",
    *,
    seed: int = 0,
    evaluate: EvaluateLike = None,
    max_drop: float | None = None,
    max_latency: float | str | None = None,
    max_size: float | str | None = None,
    state: str | Path | None = None,
    gate: bool = True,
    prove: bool = True,
    portable: bool = False,
    progress: Progress = quiet,
) -> tuple[ir.Model, Report]:
    """Rewrite a model by a recipe for a target, and say what came of it.

    Args:
        model: What ``as_model`` takes, such as the path of an ONNX file; never changed.
        recipe: Name of a shipped recipe, file, mapping, or passes: ours, your own, of onnx_ir, rules of onnxscript.
        data: What ``graphpress.calibration_data`` takes, a part of which is held out for the gate; None: the recipe's.
        target, seed: Name of a target, and the seed of everything random.
        evaluate: What ``evaluated.asked`` takes: your metric of a runner, higher is better, or the name of one; None:
            labels give top-1 in percent.
        max_drop: How much of the metric may be lost: see ``hold_drop.hold_drop``, or the pass that searches within it.
        max_latency, max_size: Shares of the float model's (``0.6x``), or milliseconds and bytes (``budgets``).
        state: A file that keeps calibration's state every few seconds, and beside it GPTQ's and trainings'
            (``<state>.<key>``): an interrupted call, made again, goes on to the identical result.
        gate: Raise when the result is below the recipe's gate.
        prove: Audit and time the result (one more session each).
        portable: Give the graph before it is lowered, in Q/DQ: what training, passes, other targets go on from.
        progress: Shows the progress of long loops.

    Returns: The model as the target runs it (before, if ``portable``), and the report.

    Raises:
        GateError: Below the gate, or max_drop cannot be held; carries ``model`` and ``report``.
        GraphpressError: Anything wrong with the request, the model or the data.
    """
    clock = Clock()
    if seed < 0:
        raise BadRequest(f"{seed} is no seed", where="seed", fix="Give a whole number from 0 up.")
    with clock.phase("load"):
        loaded = as_model(model)
        source = Path(model).name if isinstance(model, str | Path) else (loaded.graph.name or "model")
        wanted = budgets.handed(_fitting(loaded, recipe), max_latency, budgets.of_file(max_size, loaded), max_drop)
        kept = Path(state) if state is not None else None
        job = Job(loaded, wanted, as_target(target), seed, progress, clock, state=kept)
        job.take(calibration_data(said.samples(data, wanted.data), loaded), evaluate)
        if max_drop is not None:
            hold_drop.check_measurable(job.evaluate, max_drop)
        if max_drop is not None or kept is not None:
            job.calibrate = Recall(kept)
    compiled = budgets.held(job, job.once(job.recipe), max_drop)
    report = _told(job, compiled, source, gate=gate, prove=prove)
    return compiled.portable if portable else compiled.lowered, report


def _told(job: Job, compiled: Compiled, source: str, *, gate: bool, prove: bool) -> Report:
    """The report on what came of a job.

    Raises:
        GateError: It is below the gate, and that counts.
    """
    report = job.report(compiled, source)
    if prove:
        with job.clock.phase("prove"):
            job.prove(compiled, report)
    report.seconds = job.clock.seconds
    if gate and not report.gate.passed:
        raise remedy.failure(job, compiled)
    return report


def _fitting(model: ir.Model, source: Any) -> Recipe:
    """The recipe. One that goes on from where another ends says so by its name, not by that of a pass in it."""
    recipe, stage = Recipe.load(source), stage_of(model)
    outputs = [v.name or "" for v in model.graph.outputs]
    for name in recipe.gate.outputs:
        if name not in outputs:
            where = f"gate option 'outputs', {name!r}"
            raise BadRequest("the model has no such output", where=where, fix=nearest(name, outputs))
    for step in recipe.passes:
        if stage not in step.needs:
            what = f"it is for a model at stage {' or '.join(step.needs)}, and this one is {stage}"
            fix = "Quantize it first, by a recipe such as w8a8." if stage is Stage.FLOAT else "Give it the float model."
            raise BadRequest(what, where=f"recipe {recipe.name!r}", fix=fix)
        if step.gives is not None:
            break
    return recipe
