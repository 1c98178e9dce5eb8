"""The face: load or take a model, run a recipe, lower, gate, prove. Everything the command line does stands here."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir

from graphpress import demand, diagnosis, engine, fallback
from graphpress import report as reports
from graphpress.base import Arrays, Context, Pass, PassReport, Progress, Runner, quiet
from graphpress.calibration import CalibrationData
from graphpress.errors import BadRequest, CalibrationError
from graphpress.gate import compare, judge
from graphpress.metric import Evaluate, top1
from graphpress.pipeline import Pipeline
from graphpress.recall import Recall
from graphpress.recipe import Recipe
from graphpress.report import Report
from graphpress.target import Target
from graphpress.types import Numerics

if TYPE_CHECKING:
    from collections.abc import Iterator

ModelLike: TypeAlias = ir.Model | str | Path
DataLike: TypeAlias = CalibrationData | Mapping[str, np.ndarray] | str | Path | None

GATE_BATCH = 16
SITE_SAMPLES = 4  # samples for the per-site SQNR: a diagnosis, not a verdict


def load(path: str | Path) -> ir.Model:
    """An ONNX file as a model; weights stay on disk until they are touched.

    Raises:
        InvalidModel: Anything wrong with the file, in one sentence.
    """
    from graphpress.frontends import onnx_file

    return onnx_file.load(path)


def save(model: ir.Model, path: str | Path, *, external: bool | None = None) -> None:
    """Write a model atomically; weights in one external file above 1 GB or on request."""
    from graphpress.frontends import onnx_file

    onnx_file.save(model, path, external=external)


def trace(
    module: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    **options: Any,
) -> ir.Model:
    """A torch module, ExportedProgram or fx.GraphModule as a model (see ``frontends.torch_export.trace``)."""
    from graphpress.frontends import torch_export

    return torch_export.trace(module, args, kwargs, dynamic_shapes, **options)


def lower(model: ModelLike, target: str | Target = "ort-cpu") -> Any:
    """An executable for a target.

    Args:
        model: A model or the path of an ONNX file; never changed.
        target: ``ort-cpu`` gives a ``Runner``: named arrays in, named arrays out. ``torch-cpu`` and ``torch-cuda`` give
            a ``torch.fx.GraphModule`` with the call signature and the parameter names of the module that was traced
            (of an ONNX file: its inputs in order, its initializers' names), with torch's low-bit kernels where the
            graph is quantized. ``to_torch`` gives one to train.

    Raises:
        BadRequest: There is no such target, or its device is not there.
        Unsupported: The runtime has no form of an operator.
    """
    model, where = _model(model), _target(target)
    runtime = engine.of(where)
    return runtime.deploy(runtime.lower(model, where), where)


def to_torch(model: ModelLike, *, quantizers: str = "straight-through") -> Any:
    """The graph as it is, as a differentiable ``torch.fx.GraphModule`` without kernels (see ``backends.fx.build``).

    Args:
        model: A model or the path of an ONNX file; never changed.
        quantizers: ``straight-through`` passes gradients through Q/DQ; ``learnable`` makes their scales and zero points
            parameters as well; ``exact`` computes in integers, which no gradient passes.

    Raises:
        Unsupported: torch is not installed, or an operator has no form in it.
    """
    return engine.of_runtime("fx").build(_model(model), quantizers=quantizers)


def audit(model: ModelLike, target: str | Target = "ort-cpu", feeds: Arrays | None = None) -> Any:
    """What really runs: kernel, time and reason for each site (see the backend's ``Audit``)."""
    model, where = _model(model), _target(target)
    runtime = engine.of(where)
    return runtime.audit(runtime.lower(model, where), where, feeds)


def compile(
    model: ModelLike,
    recipe: str | Path | Mapping[str, Any] | Recipe | Sequence[Pass],
    data: DataLike = None,
    target: str | Target = "ort-cpu",
    *,
    seed: int = 0,
    evaluate: Evaluate | None = None,
    max_drop: float | None = None,
    max_latency: float | str | None = None,
    max_size: float | str | None = None,
    state: str | Path | None = None,
    gate: bool = True,
    prove: bool = True,
    progress: Progress = quiet,
) -> tuple[ir.Model, Report]:
    """Rewrite a model by a recipe for a target, and say what came of it.

    Args:
        model: A model or the path of an ONNX file; never changed.
        recipe: Name of a shipped recipe, file, mapping, or passes.
        data: Calibration data, samples first: arrays by input name, an .npz, a folder of .npz. A part is held out
            for the gate.
        target: Name of a target.
        seed: Seed of everything random.
        evaluate: Your metric on a runner, higher is better. Without it, labels in the data give top-1 in percent.
        max_drop: How much of the metric may be lost: see ``fallback.hold_drop``, or the pass that searches within it.
        max_latency, max_size: Shares of the float model's (``0.6x``), or milliseconds and bytes; see ``demand.handed``.
        state: A file that keeps the state of calibration every few seconds: an interrupted call, made again, goes on.
        gate: Raise when the result is below the recipe's gate.
        prove: Audit and time the result (one more session each).
        progress: Shows progress.

    Returns:
        The model as the target runs it, and the report.

    Raises:
        GateError: Below the gate, or max_drop cannot be held; carries ``model`` and ``report``.
        GraphpressError: Anything wrong with the request, the model or the data.
    """
    clock = _Clock()
    with clock.phase("load"):
        loaded = _model(model)
        source = Path(model).name if isinstance(model, str | Path) else (loaded.graph.name or "model")
        wanted = demand.handed(Recipe.load(recipe), max_latency, max_size, max_drop)
        job = _Job(loaded, wanted, _target(target), seed, progress, clock)
        job.take(_data(data), evaluate)
        if max_drop is not None:
            fallback.check(job.evaluate, max_drop)
        if max_drop is not None or state is not None:
            job.calibrate = Recall(Path(state) if state is not None else None)
    compiled = demand.held(job, job.once(job.recipe), max_drop)
    report = job.report(compiled, source)
    if prove:
        with clock.phase("prove"):
            job.prove(compiled, report)
    report.seconds = clock.seconds
    if gate and not report.gate.passed:
        raise diagnosis.gate_error(compiled.lowered, report)
    return compiled.lowered, report


@dataclass
class Compiled:
    """One run of a recipe: the tidied float graph, the portable rewritten one, the lowered one, and what came of it."""

    clean: ir.Model
    portable: ir.Model
    lowered: ir.Model
    report: Report
    metric: float | None = None


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass
class _Job:
    """One request; ``once`` may run several recipes of it."""

    model: ir.Model
    recipe: Recipe
    target: Target
    seed: int
    progress: Progress
    clock: _Clock
    data: CalibrationData | None = None
    held_out: CalibrationData | None = None
    evaluate: Evaluate | None = None
    calibrate: Recall | None = None
    made_by: str = ""  # the pass that made the calibration data, where the user's are not used
    gated_by: str = ""  # likewise of the held-out samples
    tidied: tuple[tuple[Pass, ...], ir.Model, list[PassReport]] | None = None

    def __post_init__(self) -> None:
        self.engine = engine.of(self.target)
        self.float_runner: Runner | None = None

    def take(self, data: CalibrationData | None, evaluate: Evaluate | None) -> None:
        self.evaluate = evaluate
        if data is None:
            return
        data.check(self.model)
        data = data.bind(self.model)
        exact = (data.binding.exact if data.binding else None) or 1  # a model may fix its batch: parts must fill it
        held = max(min(self.recipe.gate.samples, len(data) // 5) // exact, 1) * exact
        held = held if len(data) >= max(2 * exact, 5) else 0
        self.data, self.held_out = data.split(held, self.seed) if held else (data, data)
        if evaluate is None and data.labels is not None:
            self.evaluate = top1(self.held_out)

    def context(self) -> Context:
        found = context(self.target, self.data, seed=self.seed, progress=self.progress)
        return replace(found, calibrate=self.calibrate, evaluate=self.evaluate)

    def once(self, recipe: Recipe) -> Compiled:
        with self.clock.phase("passes"):
            clean, portable, passes = self.rewrite(recipe)
        with self.clock.phase("lower"):
            lowered = self.engine.lower(portable, self.target)
        report = Report(passes=passes, plan=next((p.plan for p in reversed(passes) if p.plan is not None), None))
        with self.clock.phase("gate"):
            runner = self.engine.execute(lowered)
            self.gate(runner, recipe, report)
            metric = self.evaluate(runner) if self.evaluate else None
        return Compiled(clean, portable, lowered, report, metric)

    def rewrite(self, recipe: Recipe, check_numbers: bool | None = None) -> tuple[ir.Model, ir.Model, list[PassReport]]:
        """The tidied float graph, the portable rewritten one, and what the passes said."""
        cut = next((i for i, p in enumerate(recipe.passes) if p.numerics is Numerics.LOSSY), len(recipe.passes))
        clean, first = self.tidy(recipe.passes[:cut])
        portable, rest = Pipeline(recipe.passes[cut:], check_numbers=check_numbers).run(clean, self.context())
        return clean, portable, [*first, *rest]

    def tidy(self, passes: tuple[Pass, ...]) -> tuple[ir.Model, list[PassReport]]:
        """The float graph after the passes that keep its function; run once however often sites are taken back."""
        if self.tidied is None or self.tidied[0] != passes:
            self.tidied = (passes, *Pipeline(passes).run(self.model, self.context()))
            self.adopt(self.tidied[2])
        return self.tidied[1], self.tidied[2]

    def adopt(self, passes: list[PassReport]) -> None:
        """Calibrate on data that a pass made; where the user gave none, they gate as well."""
        made = next((p for p in reversed(passes) if p.data is not None), None)
        if made is None or made.data is None:
            return
        self.made_by = made.name
        if self.held_out is None:
            self.take(made.data, self.evaluate)
            self.gated_by = made.name
        else:
            self.data = made.data.bind(self.model)

    def original(self) -> Runner:
        """The float model on the target's runtime, built once."""
        if self.float_runner is None:
            self.float_runner = self.engine.execute(self.model)
        return self.float_runner

    def gate(self, runner: Runner, recipe: Recipe, report: Report) -> None:
        if self.held_out is None:
            report.gate.left_out = "no data was given"
            return
        size = (self.held_out.binding.exact if self.held_out.binding else None) or GATE_BATCH
        batches = self.progress(self.held_out.batches(size), "gate", -(-len(self.held_out) // size))
        outputs, samples = compare(self.original(), runner, batches)
        report.gate = judge(outputs, samples, recipe.gate)
        if self.held_out is self.data:
            report.gate.left_out = "too few samples to hold any out: the gate saw the calibration samples"
        if self.gated_by:
            report.gate.left_out = f"no data was given: the gate saw samples that {self.gated_by} made"

    def report(self, compiled: Compiled, source: str) -> Report:
        report = compiled.report
        report.model, report.recipe, report.target, report.seed = source, self.recipe.name, self.target.name, self.seed
        report.sites = reports.site_rows(compiled.clean, compiled.portable, report.passes)
        report.ops = {"before": reports.histogram(self.model), "after": reports.histogram(compiled.lowered)}
        report.size = {
            "weights_before": reports.stored_bytes(self.model),
            "weights_after": reports.stored_bytes(compiled.lowered),
        }
        if self.data is not None and self.held_out is not None:
            report.data = {"digest": self.data.digest(), "calibration": len(self.data), "held_out": len(self.held_out)}
            report.data |= {"made_by": self.made_by} if self.made_by else {}
        if self.evaluate and compiled.metric is not None and "before" not in report.metric:
            report.metric |= {"before": self.evaluate(self.original()), "after": compiled.metric}
        if not report.gate.passed:
            self.diagnose(compiled, report)
            report.gate.blame = diagnosis.blame(report.sites)
        return report

    def diagnose(self, compiled: Compiled, report: Report) -> None:
        """Noise at every site on a few samples, and the histograms of the worst."""
        if self.held_out is None:
            for site in report.sites:
                site.unmeasured = "no data"
            return
        from graphpress.backends import reference

        feeds = next(iter(self.held_out.batches(SITE_SAMPLES)))
        diagnosis.measure(compiled.clean, compiled.portable, report.sites, feeds, reference.execute)
        seen = {site: h for p in report.passes for site, h in p.histograms.items()}
        seen = seen or diagnosis.weight_histograms(compiled.clean, report.sites)
        report.histograms = diagnosis.worst_histograms(report.sites, seen)

    def prove(self, compiled: Compiled, report: Report) -> None:
        from graphpress.latency import compare as compare_latency

        feeds = next(iter(self.held_out.batches(1))) if self.held_out else None
        try:
            found = self.engine.audit(compiled.lowered, self.target, feeds)
        except BadRequest as e:
            if feeds is not None:
                raise
            report.audit = {"left_out": str(e)}  # without data there may be no input that the model takes
            return
        report.audit = found.to_json()
        rows = {r.node: r for r in found.sites}
        for site in report.sites:
            if row := rows.get(site.node):
                for name in ("verdict", "kernel", "reason", "microseconds", "share", "macs"):
                    setattr(site, name, getattr(row, name))
        if report.gate.passed:
            self.diagnose(compiled, report)
        if feeds is not None:
            report.latency = compare_latency(self.original(), self.engine.execute(compiled.lowered), feeds)


def context(
    target: Target, data: CalibrationData | None = None, *, seed: int = 0, progress: Progress = quiet
) -> Context:
    """What passes get to work with: everything that executes, for a target."""
    from graphpress.backends import ort, reference

    runtime = engine.of(target)
    return Context(
        target=target, data=data, run=partial(ort.execute, threads=1), oracle=reference.execute, seed=seed,
        progress=progress, differentiate=_differentiate,
        deploy=lambda model: runtime.execute(runtime.lower(model, target)),
    )  # fmt: skip


def _differentiate(*args: Any, **options: Any) -> Any:
    return engine.of_runtime("fx").build(*args, **options)


def _model(model: ModelLike) -> ir.Model:
    if isinstance(model, ir.Model):
        return model
    if isinstance(model, str | Path):
        return load(model)
    raise BadRequest(
        f"a model is an onnx_ir.Model or the path of an ONNX file, not a {type(model).__name__}",
        where="model",
        fix="Bring a torch module in with graphpress.trace(module, args).",
    )


def _target(target: str | Target) -> Target:
    return target if isinstance(target, Target) else Target.load(target)


def _data(data: DataLike) -> CalibrationData | None:
    if data is None or isinstance(data, CalibrationData):
        return data
    if isinstance(data, Mapping):
        arrays = {k: np.asarray(v) for k, v in data.items() if k != "labels"}
        return CalibrationData.from_arrays(arrays, data.get("labels"))
    if isinstance(data, str | Path):
        return CalibrationData.load(data)
    raise CalibrationError(
        f"a {type(data).__name__} is no calibration data", where="data", fix="Give arrays by input name, or a path."
    )
