"""Run passes on a copy of a model and check each of them: structure, stage, promise of change, numbers.

The input model is never touched. A failure names the pass, the passes before it and the place in the graph, and can
leave a reproducer behind (the model before the guilty pass and the text of the pipeline).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphpress import catalog
from graphpress.borrowed import Step, as_pass
from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.errors import BadRequest, GraphpressError, PassError, VerifyError
from graphpress.graph import edit, half, names, quantized, randomness, text, verify, widening
from graphpress.keys import BY, STAGE
from graphpress.observe.sources.taken import calibration_data
from graphpress.runner import Arrays, Runner
from graphpress.types import Numerics, Stage

LOG = logging.getLogger(__name__)
# Largest deviation allowed, as a share of the output's RMS, for a pass that declares itself exact or close.
TOLERANCE = {Numerics.EXACT: 1e-5, Numerics.CLOSE: 1e-3}
# What constants that a pass rounds to half precision may add to it: so many units in the last place of 1.0.
HALF_UNITS = 16
# Differences below one unit in the last place of 1.0 are no evidence: outputs near zero have an RMS of that size.
FLOOR = 2.0**-23
# Inputs and weights are moved by this share, up or down, to see whether outputs say anything at all: eight units in the
# last place of float32, as passes that reorder sums move inner values.
NUDGE = 2.0**-20
# One probe run may cost this long; beyond it the numeric check is left out, and the report says so.
PROBE_SECONDS = 2.0
_NUDGES = 3


def stage_of(model: ir.Model) -> Stage:
    """What the model says of itself; a model that says nothing is judged by whether it holds Q/DQ nodes."""
    said = STAGE.get(model)
    if said is not None:
        return said
    quantized = any(_quantizes(n) for n in edit.nodes(model))
    return Stage.QDQ if quantized else Stage.FLOAT


def _quantizes(node: ir.Node) -> bool:
    dynamic = node.op_type == "DynamicQuantizeLinear" and not node.domain
    return dynamic or quantized.encodes(node) or quantized.decodes(node)


@dataclass(frozen=True)
class Pipeline:
    """A sequence of passes: ours, a user's own, any in-place pass of onnx_ir, rewrite rules of onnxscript.

    Args:
        passes: In order of execution.
        check_numbers: Compare outputs before and after each exact or close pass on a probe batch (needs
            ``Context.oracle`` and ``Context.data``). None: as long as one run takes under two seconds.
        dump: A folder for reproducers; created on the first failure.
        watch: Called after each pass with the model and its report.
    """

    passes: Sequence[Step]  # once made: of Pass alone
    check_numbers: bool | None = None
    dump: Path | None = None
    watch: Callable[[ir.Model, PassReport], None] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "passes", tuple(as_pass(p) for p in self.passes))

    def run(self, model: ir.Model | str | Path, ctx: Context | None = None) -> tuple[ir.Model, list[PassReport]]:
        """The rewritten copy and one report a pass.

        Args:
            model: A model, which is not changed, or the path of a file.
            ctx: What the passes may depend on; None: on nothing.

        Raises:
            InvalidModel: Anything wrong with the file.
            PassError: A pass raised, or broke its promise (stage, numbers).
            VerifyError: A pass left a broken graph.
            GraphpressError: Bad input or a request that cannot be met, as the pass raised it.
        """
        ctx = ctx or Context()
        work = model.clone() if isinstance(model, ir.Model) else catalog.reader(model)(model)
        if (data := calibration_data(ctx.data, work)) is not None:
            reads = (name for step in self.passes if isinstance(step, Pass) for name in step.reads)
            ctx = replace(ctx, data=data.allow(reads).bind(work))  # batches in the size that the model takes
        names.unique_values(work)  # two branches of an If may use one name
        verify.check(work)
        self._check_order(stage_of(work))
        self._check_ahead(ctx)
        oracle = _Oracle(ctx, self.check_numbers)
        reports, state = [], None
        for i, step in enumerate(ctx.progress(self.passes, "passes", len(self.passes))):
            before = work.clone() if self.dump else None
            teacher = work.clone() if ctx.teacher is None and step.numerics is Numerics.LOSSY else ctx.teacher
            try:
                report, state = self._one(work, step, ctx, oracle, state)
            except GraphpressError as e:
                self._explain(e, i, before)
                raise
            reports.append(report)
            ctx = replace(ctx, teacher=teacher)
            if report.handed:  # the rest sees what the pass made
                ctx = replace(ctx, **report.handed)
                oracle = _Oracle(ctx, self.check_numbers)
            if self.watch:
                self.watch(work, report)
                state = None  # who watches may write
        return work, reports

    def _one(
        self, work: ir.Model, step: Pass, ctx: Context, oracle: _Oracle, state: list[object] | None
    ) -> tuple[PassReport, list[object] | None]:
        """Run a pass; ``state`` is the graph's (``text.state``), as the pass before left it, where that is known."""
        report = PassReport(name=step.name)
        known = {id(n) for n in edit.nodes(work)}
        edit.index(work)
        before = text.state(work) if state is None else state
        if step.numerics is not Numerics.LOSSY:
            oracle.remember(work)
        start = time.perf_counter()
        _run(work, step, ctx, report)
        report.seconds = time.perf_counter() - start
        if changed := text.state(work) != before:
            report.changed = max(report.changed, 1)
            _stamp(work, known, report.name)
            _check(work, report.name)
            report.checked = oracle.check(work, step)
        LOG.info(
            "pass %s: %d changed, %d skipped, %.3f s", step.name, report.changed, len(report.skips), report.seconds
        )
        if step.gives is not None:
            STAGE.set(work, step.gives)
        return report, None if changed or step.gives is not None else before

    def _check_order(self, stage: Stage) -> None:
        for step in self.passes:
            if stage not in step.needs:
                raise BadRequest(
                    f"needs a model at stage {' or '.join(step.needs)}, but here it is {stage}",
                    where=f"pass {step.name!r}",
                    fix="Put it " + ("before quantization." if step.needs[0] is Stage.FLOAT else "after quantize."),
                )
            stage = step.gives or stage

    def _check_ahead(self, ctx: Context) -> None:
        for step in self.passes:
            step.check(ctx)
            if step.hands:  # those after it see another context
                return

    def _explain(self, error: GraphpressError, index: int, before: ir.Model | None) -> None:
        names = [p.name for p in self.passes]
        error.add_note(f"in pass {index + 1} of {len(names)}, {self.passes[index]!r}; before it: {names[:index]}")
        if self.dump and before is not None:
            self.dump.mkdir(parents=True, exist_ok=True)
            ir.save(before, self.dump / "before.onnx")
            (self.dump / "pipeline.txt").write_text("\n".join(repr(p) for p in self.passes[index:]) + "\n")
            error.add_note(f"reproducer: {self.dump / 'before.onnx'} and pipeline.txt beside it")


def _run(work: ir.Model, step: Pass, ctx: Context, report: PassReport) -> None:
    try:
        step.run(work, ctx, report)
    except GraphpressError:
        raise
    except Exception as e:  # a pass may raise anything; the user gets one kind of error with the place
        raise PassError(
            f"{type(e).__name__}: {e}", where=f"pass {report.name!r}", fix="This is a bug of the pass."
        ) from e


def _stamp(work: ir.Model, known: set[int], name: str) -> None:
    taken: set[str] = set()
    for node in edit.nodes(work):
        if id(node) not in known:
            node.metadata_props.setdefault(BY, name)
        if not node.name or node.name in taken:
            node.name = edit.fresh_name(work, node.name or node.op_type)
        taken.add(node.name)


def _check(work: ir.Model, name: str) -> None:
    try:
        verify.check(work)
    except VerifyError as e:
        broken = VerifyError(str(e), where=f"pass {name!r} left a broken graph", fix="This is a bug of the pass.")
        for note in getattr(e, "__notes__", ()):
            broken.add_note(note)
        raise broken from e


class _Oracle:
    """Holds what the last verified graph gives, so that each check costs one run, and none where nothing changes."""

    def __init__(self, ctx: Context, wanted: bool | None) -> None:
        self.ctx, self.wanted = ctx, wanted
        self.feeds: Arrays | None = None
        self.outputs: dict[str, np.ndarray] | None = None
        self.before: ir.Model | None = None  # the graph that gives them, where it was not run yet
        self.kinds: set[ir.DataType] = set()  # half types of its constants
        self.why_not = ""
        if wanted is False:
            self.why_not = "not asked for"
        elif ctx.oracle is None or ctx.data is None:
            self.why_not = "no data" if ctx.oracle else "no oracle"

    def check(self, model: ir.Model, step: Pass) -> str:
        if step.numerics is Numerics.LOSSY:
            self.outputs = self.before = None
            return "lossy: left to the gate"
        if self.outputs is None and not self.why_not:
            self._run_before()
        if self.why_not:
            return f"not checked: {self.why_not}"
        return self._compare(model, step)

    def remember(self, model: ir.Model) -> None:
        """Take ``model`` as the truth for the next check: a copy that shares its tensors, run only if there is one."""
        if not self.why_not and self.outputs is None and self.before is None:
            self.why_not = randomness.DIFFER if randomness.draws(model) else ""
            self.before = model.clone()

    def _run_before(self) -> None:
        assert self.ctx.oracle is not None and self.ctx.data is not None and self.before is not None
        self.feeds = next(iter(self.ctx.data.batches(1)))
        start = time.perf_counter()
        self.kinds |= half.found_constants(self.before)
        self.outputs, self.before = self.ctx.oracle(widening.widened(self.before))(self.feeds), None
        if time.perf_counter() - start > PROBE_SECONDS and not self.wanted:
            self.why_not = f"one probe run takes over {PROBE_SECONDS:.0f} s"

    def _compare(self, model: ir.Model, step: Pass) -> str:
        assert self.ctx.oracle is not None and self.outputs is not None and self.feeds is not None
        runner: Runner = self.ctx.oracle(widening.widened(model))
        after = runner(self.feeds)
        worst = deviation(self.outputs, after)
        self.outputs = after
        self.kinds |= half.found_constants(model)
        allowed = TOLERANCE[step.numerics] + HALF_UNITS * max((half.unit(k) for k in self.kinds), default=0.0)
        self.kinds = half.found_constants(model)
        if not worst <= allowed:
            if worst <= 2 * (own := self._own_deviation(model, after)) and own > allowed:
                return (
                    f"not checked: outputs move by {own:.1e} of their RMS where weights move by {NUDGE:.0e} of theirs"
                )
            raise PassError(
                f"declared {step.numerics} but the outputs moved by {worst:.2e} of their RMS (allowed {allowed:.0e})",
                where=f"pass {step.name!r}",
                fix="This is a bug of the pass; run with dump= to get a reproducer.",
            )
        return f"{step.numerics}: {worst:.1e}"

    def _own_deviation(self, model: ir.Model, outputs: Arrays) -> float:
        """How far outputs move with inputs and weights that move by next to nothing: far, where near ties decide."""
        assert self.ctx.oracle is not None and self.feeds is not None
        worst = 0.0
        for seed in range(_NUDGES):
            rng, moved = np.random.default_rng(seed), model.clone()
            for value in moved.graph.initializers.values():
                if value.const_value is not None and len(value.const_value.shape) > 1:
                    value.const_value = ir.tensor(_nudged(value.const_value.numpy(), rng), name=value.name)
            feeds = {name: _nudged(array, rng) for name, array in self.feeds.items()}
            worst = max(worst, deviation(outputs, self.ctx.oracle(widening.widened(moved))(feeds)))
        return worst


def _nudged(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Floats by ``NUDGE`` up or down; all else as it is."""
    if array.dtype.kind != "f":
        return array
    moved: np.ndarray = (array * (1 + NUDGE * rng.choice([-1, 1], array.shape))).astype(array.dtype)
    return moved


def deviation(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
    """Largest difference over all outputs as a share of the RMS of ``a``; inf where names, shapes or NaNs differ.

    Outputs in half precision may differ by one unit in the last place: two roundings of what is nearly the same.
    """
    if list(a) != list(b):
        return float("inf")
    return max((_deviation(a[n], b[n]) for n in a), default=0.0)


def _deviation(x: np.ndarray, y: np.ndarray) -> float:
    if x.shape != y.shape or x.dtype != y.dtype:
        return float("inf")
    if x.dtype.kind not in "fV" and x.dtype.name != "bfloat16":
        return 0.0 if np.array_equal(x, y) else float("inf")
    u, v = x.astype(np.float64), y.astype(np.float64)
    finite = np.isfinite(u)
    if not np.array_equal(u[~finite], v[~finite], equal_nan=True):
        return float("inf")
    u, v = u[finite], v[finite]
    rms = float(np.sqrt(np.mean(u * u))) if u.size else 0.0
    unit = half.unit(ir.DataType.from_numpy(x.dtype)) if x.dtype.itemsize == 2 else 0.0
    apart = np.abs(u - v)
    worst = float(np.max(apart[~(apart <= unit * np.abs(u))], initial=0.0))
    return 0.0 if worst <= FLOOR else worst / max(rms, 1e-12)
