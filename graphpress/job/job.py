"""One request and what comes of it: calibrate, rewrite, lower, gate, diagnose, prove."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphpress import catalog
from graphpress.context import Context
from graphpress.contracts import Pass, PassReport, Skip
from graphpress.errors import BadRequest
from graphpress.graph import file_size, half, half_storage, randomness, widening
from graphpress.job import engine, natures
from graphpress.job import latency as latencies
from graphpress.job.evaluated import EvaluateLike, asked
from graphpress.job.gate import GateResult, compare_outputs, judge, told
from graphpress.job.metric import Counts, Evaluate, Tally, Top1, check_labels, labelled
from graphpress.observe import looks
from graphpress.observe.binding import LABELS
from graphpress.observe.data import CalibrationData
from graphpress.observe.memo import Recall
from graphpress.observe.shaped import shaped
from graphpress.pipeline import Pipeline
from graphpress.recipe import Recipe
from graphpress.report import diagnosis
from graphpress.report import report as reports
from graphpress.report.idle import grown, idle
from graphpress.report.report import Report
from graphpress.runner import Progress, Runner, quiet
from graphpress.target import Target
from graphpress.types import Numerics

LOG = logging.getLogger(__name__)
GATE_BATCH = 16
PROOF_SECONDS = 0.3  # of measuring latencies, where that tells enough
SITE_SAMPLES = 4  # samples for the per-site SQNR: a diagnosis, not a verdict


@dataclass
class Compiled:
    """One run of a recipe: the tidied float graph, the portable rewritten one, the lowered one, and what came of it."""

    clean: ir.Model
    portable: ir.Model
    lowered: ir.Model
    report: Report
    metric: float | None = None
    runner: Runner | None = None  # of what is lowered, where the gate has run that itself


@dataclass
class Clock:
    """Seconds of each phase of a job."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + took
            LOG.info("%s: %.3f s", name, took)


@dataclass
class Job:
    """One request; ``once`` may run several recipes of it."""

    model: ir.Model
    recipe: Recipe
    target: Target
    seed: int
    progress: Progress
    clock: Clock
    data: CalibrationData | None = None
    held_out: CalibrationData | None = None
    evaluate: Evaluate | None = None
    state: Path | None = None
    calibrate: Recall | None = None
    made_by: str = ""  # the pass that made the calibration data, where the user's are not used
    gated_by: str = ""  # likewise of the held-out samples
    tidied: tuple[tuple[Pass, ...], ir.Model, list[PassReport]] | None = None

    def __post_init__(self) -> None:
        self.engine = engine.of(self.target)
        self.float_runner: Runner | None = None
        self.odd = ""  # what the data looks like and should not

    def take(self, data: CalibrationData | None, evaluate: EvaluateLike) -> None:
        wanted = asked(evaluate)
        if data is None:
            self.evaluate = wanted.on(None)
            return
        data = data.allow([*wanted.reads, *(name for step in self.recipe.passes for name in step.reads)])
        data.check(self.model)
        data = data.bind(self.model)
        self.odd = looks.raw_pixels(self.model, next(data.batches(8), {}))
        exact = (data.binding.exact if data.binding else None) or 1  # a model may fix its batch: parts must fill it
        held = max(min(self.recipe.gate.samples, len(data) // 5) // exact, 1) * exact
        held = held if len(data) >= max(2 * exact, 5) else 0
        self.data, self.held_out = data.split(held, self.seed) if held else (data, data)
        self.evaluate = wanted.on(self.held_out)
        named = {value.name for value in self.model.graph.inputs}
        if evaluate is None and LABELS not in named and (labels := data.labels) is not None:
            check_labels(labels, self.model)
            self.evaluate = Top1(self.held_out)

    def context(self) -> Context:
        found = context(self.target, self.data, seed=self.seed, progress=self.progress)
        said = self.recipe.gate.outputs
        return replace(found, calibrate=self.calibrate, evaluate=self.evaluate, outputs=said, state=self.state)

    def once(self, recipe: Recipe) -> Compiled:
        with self.clock.phase("passes"):
            clean, portable, passes = self.rewrite(recipe)
        with self.clock.phase("lower"):
            lowered = self.lowered(portable)
        report = Report(passes=passes, plan=next((p.plan for p in reversed(passes) if p.plan is not None), None))
        with self.clock.phase("gate"):
            opened = widening.opened(lowered)
            runner = self.engine.execute(opened, target=self.target)
            metric = self.measured(runner, recipe, report, self.gate(runner, recipe, report))
        return Compiled(clean, portable, lowered, report, metric, runner if opened is lowered else None)

    def lowered(self, portable: ir.Model) -> ir.Model:
        """For the target; in an artifact (torch has parameters by name) what was added has short names."""
        made = self.engine.lower(portable, self.target)
        if self.target.runtime == "ort":
            file_size.shorten(made, self.names)
        return made

    @cached_property
    def names(self) -> set[str]:
        """Of all that the user's model has."""
        return file_size.names(self.model)

    def judged(self, recipe: Recipe) -> GateResult:
        """What the gate says of another recipe, labels included; nothing is measured in a way of the user's own."""
        lowered = self.lowered(self.rewrite(recipe, check_numbers=False)[1])
        runner, report = self.engine.execute(widening.opened(lowered), target=self.target), Report()
        counts = self.gate(runner, recipe, report)
        if isinstance(self.evaluate, Top1):
            self.measured(runner, recipe, report, counts)
        return report.gate

    def rewrite(self, recipe: Recipe, check_numbers: bool | None = None) -> tuple[ir.Model, ir.Model, list[PassReport]]:
        """The tidied float graph, the portable rewritten one, and what the passes said."""
        passes = (*self.widening(), *recipe.passes)
        cut = next((i for i, p in enumerate(passes) if p.numerics is Numerics.LOSSY), len(passes))
        clean, first = self.tidy(passes[:cut])
        portable, rest = Pipeline(passes[cut:], check_numbers=check_numbers).run(clean, self.context())
        return clean, portable, [*first, *rest]

    def widening(self) -> tuple[Pass, ...]:
        """What comes before all else where the model is in half precision, which other passes do not know."""
        if not half.found(self.model):
            return ()
        known = catalog.passes()
        return known["infer-shapes"](), known["widen-half"]()

    def tidy(self, passes: tuple[Pass, ...]) -> tuple[ir.Model, list[PassReport]]:
        """The float graph after the passes that keep its function; run once however often sites are taken back."""
        if self.tidied is None or self.tidied[0] != passes:
            self.tidied = (passes, *Pipeline(passes).run(self.model, self.context()))
            self.adopt(self.tidied[2])
        return self.tidied[1], self.tidied[2]

    def adopt(self, passes: list[PassReport]) -> None:
        """Calibrate on data that a pass made; where the user gave none, they gate as well."""
        made = next((p for p in reversed(passes) if "data" in p.handed), None)
        if made is None:
            return
        data: CalibrationData = made.handed["data"]
        self.made_by = made.name
        if self.held_out is None:
            self.take(data, self.evaluate)
            self.gated_by = made.name
        else:
            self.data = data.bind(self.model)

    def original(self) -> Runner:
        """The float model on the target, built once; one in half precision computes and answers in float32."""
        if self.float_runner is None:
            self.float_runner = self.engine.execute(widening.opened(widening.widened(self.model)), target=self.target)
        return self.float_runner

    def as_given(self) -> Runner:
        """The model as the user has it, on the target; what runs there in half precision does, as far as it goes."""
        return self.engine.execute(self.model, target=self.target) if half.found(self.model) else self.original()

    @cached_property
    def drawn(self) -> str:
        """Why no two runs of the model can be compared; "" where they can."""
        return randomness.DIFFER if randomness.draws(self.model) else ""

    def gate(self, runner: Runner, recipe: Recipe, report: Report) -> list[Counts]:
        """Compare with the float model; the labels that the float model and the new one met, where there are labels."""
        if self.held_out is None:
            report.gate.left_out = "no data was given"
            return []
        if self.drawn:
            report.gate.left_out = f"nothing of the model can be compared: {self.drawn}"
            report.gate.remedy = [f"{randomness.WAY_OUT}: then the gate can judge it."]
            return []
        labels = self.evaluate if isinstance(self.evaluate, Top1) and self.evaluate.data is self.held_out else None
        tallies = [Tally(labels), Tally(labels)] if labels else []
        size = (self.held_out.binding.exact if self.held_out.binding else None) or GATE_BATCH
        batches = self.progress(self.held_out.batches(size), "gate", -(-len(self.held_out) // size))
        find = partial(natures.find, self.model, said=recipe.gate.outputs)
        see = [tally.see for tally in tallies]
        outputs, samples = compare_outputs(self.original(), runner, batches, recipe.gate, find, see)
        report.gate = judge(outputs, samples, recipe.gate)
        if self.held_out is self.data:
            report.gate.left_out = "too few samples to hold any out: the gate saw the calibration samples"
        if self.gated_by:
            report.gate.left_out = f"no data was given: the gate saw samples that {self.gated_by} made"
        return [tally.counts() for tally in tallies]

    def measured(self, runner: Runner, recipe: Recipe, report: Report, counts: Sequence[Counts]) -> float | None:
        """The metric of the new model; labels also tell the gate, and what they say goes before what is estimated."""
        if not isinstance(self.evaluate, Top1):
            return self.evaluate(runner) if self.evaluate else None
        before, after = counts or map(self.evaluate.counts, (self.original(), runner))
        change = report.gate.outputs[0].change if report.gate.outputs else 1.0
        found = labelled(self.evaluate, before, after, recipe.gate.max_loss, change)
        report.metric = {"before": found.before, "after": found.after}
        report.metric |= {"before_error": found.error[0], "after_error": found.error[1], "samples": found.samples}
        if report.gate.outputs:
            told(report.gate, found.lost, recipe.gate)
        if found.chance:
            what = f"the float model is right for {found.before:.1f} % of {found.samples} samples, no more than a guess"
            report.idle.append(
                Skip("labels", f"{what} would be: look at how the inputs are prepared, and at the labels")
            )
        return found.after

    def report(self, compiled: Compiled, source: str) -> Report:
        report = compiled.report
        report.measured_by = getattr(self.evaluate, "title", "") or getattr(self.evaluate, "name", "")
        report.model, report.recipe, report.target, report.seed = source, self.recipe.name, self.target.title, self.seed
        if self.odd:
            LOG.warning("data: %s", self.odd)
        report.idle += [*([Skip("data", self.odd)] if self.odd else []), *idle(self.recipe, report.passes)]
        report.sites = reports.site_rows(compiled.clean, compiled.portable, report.passes)
        report.half = _half(report.passes, compiled.lowered)
        report.ops = {"before": reports.histogram(self.model), "after": reports.histogram(compiled.lowered)}
        report.size = {
            "weights_before": reports.stored_bytes(self.model),
            "weights_after": reports.stored_bytes(compiled.lowered),
        }
        report.size |= {
            "file_before": file_size.file_bytes(self.model), "file_after": file_size.file_bytes(compiled.lowered)
        }  # fmt: skip
        if not any(s.where == f"recipe {self.recipe.name!r}" for s in report.idle):  # it changed nothing
            report.idle += grown(report.size)
        if self.data is not None and self.held_out is not None:
            report.data = {"digest": self.data.digest(), "calibration": len(self.data), "held_out": len(self.held_out)}
            report.data |= {"made_by": self.made_by} if self.made_by else {}
            report.data |= {"notes": list(self.data.notes)} if self.data.notes else {}
        if self.evaluate and compiled.metric is not None and "before" not in report.metric:
            report.metric |= {"before": self.evaluate(self.original()), "after": compiled.metric}
        if not report.gate.passed:
            self.diagnose(compiled, report)
            report.gate.blame = diagnosis.blame(report.sites)
        return report

    def diagnose(self, compiled: Compiled, report: Report) -> None:
        """Noise at every site on a few samples, and the histograms of the worst."""
        if self.held_out is None or self.drawn:
            for site in report.sites:
                site.unmeasured = self.drawn or "no data"
            return
        from graphpress.backends import reference

        feeds = next(iter(self.held_out.batches(SITE_SAMPLES)))
        diagnosis.measure(compiled.clean, compiled.portable, report.sites, feeds, reference.execute)
        seen = {site: h for p in report.passes for site, h in p.histograms.items()}
        seen = seen or diagnosis.weight_histograms(compiled.clean, report.sites)
        report.histograms = diagnosis.worst_histograms(report.sites, seen)

    def prove(self, compiled: Compiled, report: Report) -> None:
        feeds = shaped(self.model, next(iter(self.held_out.batches(1))), self.target) if self.held_out else None
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
            lowered = compiled.runner or self.engine.execute(compiled.lowered, target=self.target)
            report.latency = latencies.compare_latency(self.as_given(), lowered, feeds, hurry=PROOF_SECONDS)


def _half(passes: list[PassReport], lowered: ir.Model) -> str:
    """What became of half precision, in a line; "" where the model has none."""
    said = next((str(p.metrics["half"]) for p in passes if "half" in p.metrics), "")
    count = half_storage.count_stored(lowered)
    return f"{said}; {count} float weight{'s' * (count != 1)} stored as halves" if said and count else said


def context(
    target: Target, data: CalibrationData | None = None, *, seed: int = 0, progress: Progress = quiet
) -> Context:
    """What passes get to work with: everything that executes, for a target."""
    from graphpress.backends import ort, reference

    runtime = engine.of(target)
    return Context(
        target=target, data=data, run=partial(ort.execute, threads=1), oracle=reference.execute, seed=seed,
        progress=progress, differentiate=_differentiate,
        deploy=lambda model: runtime.execute(runtime.lower(model, target), target=target),
        lower=lambda model: runtime.lower(model, target),
    )  # fmt: skip


def _differentiate(*args: Any, **options: Any) -> Any:
    return engine.of_runtime("fx").build(*args, **options)
