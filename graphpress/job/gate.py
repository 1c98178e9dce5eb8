"""The accuracy gate: the float model against the rewritten one on samples that calibration has not seen.

Each output is judged by what it is (``natures``) with figures that say what a user would see (``measures``), and with
what chance does to a figure of few samples: what may be as good as asked is not refused, and it is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from graphpress.job.bars import Gate
from graphpress.job.chance import Verdict
from graphpress.job.measures import MEASURES, Classes, Figure, Measure, Rows
from graphpress.job.natures import Kind, Nature
from graphpress.runner import Arrays, Runner

# What is judged by more telling figures must not be mere noise all the same: a model that prefers nothing has no choice
# to lose.
FLOOR_DB, FLOOR_COSINE = 5.0, 0.7
Find: TypeAlias = Callable[[Mapping[str, np.ndarray]], Mapping[str, Nature]]
See: TypeAlias = Callable[[Mapping[str, np.ndarray]], None]


@dataclass
class OutputCheck:
    """One output, over all samples.

    Attributes:
        name: Of it.
        sqnr, cosine, max_abs: Of all numbers together.
        agreement: Share of choices that are exactly the same, of scores of classes.
        kind: What it is taken for.
        figures: What it is judged by beside, or in place of, SQNR and cosine.
        worst: (sample, SQNR in dB) of the sample that suffers most.
        sure: Whether it is known what it is, so that SQNR and cosine are held to a floor alone.
        change: What one changed choice more would cost a sample at most, of 1, at the noise that was measured.
    """

    name: str
    sqnr: float
    cosine: float
    max_abs: float
    agreement: float | None = None
    kind: str = Kind.VALUES
    figures: list[Figure] = field(default_factory=list)
    worst: tuple[int, float] | None = None
    sure: bool = True
    change: float = 1.0


@dataclass
class GateResult:
    """The verdict.

    Attributes:
        outputs: What was measured.
        samples: How many were seen.
        failures: What is below the gate.
        blame: Sites, worst first, with SQNR in dB: of the outputs with that site alone quantized, or where that is not
            known of its own output.
        remedy: What was found to make it pass, or that nothing was, in sentences.
        left_out: Why there was no check, or why it says less.
        unsure: What so few samples cannot tell: it may be below the gate.
    """

    outputs: list[OutputCheck] = field(default_factory=list)
    samples: int = 0
    failures: list[str] = field(default_factory=list)
    blame: list[tuple[str, float]] = field(default_factory=list)
    remedy: list[str] = field(default_factory=list)
    left_out: str = ""
    unsure: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing is known to be below the gate."""
        return not self.failures

    @property
    def verdict(self) -> Verdict:
        return Verdict.FAILED if self.failures else Verdict.UNSURE if self.unsure else Verdict.PASSED

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed, "verdict": self.verdict}


class _Sums:
    """Running sums of one output: memory does not grow with the number of samples."""

    def __init__(self) -> None:
        self.aa = self.bb = self.ab = self.ee = self.max_abs = 0.0
        self.broken = False
        self.worst: tuple[int, float] | None = None

    def add(self, a: np.ndarray, b: np.ndarray, start: int) -> None:
        """Another batch, whose first sample is the one numbered ``start``."""
        if a.shape != b.shape:
            self.broken = True
            return
        u, v = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
        finite = np.isfinite(u)
        self.broken |= not np.isfinite(v[finite]).all()
        if self.broken:
            return
        u, v = np.where(finite, u, 0.0), np.where(finite, v, 0.0)
        e = u - v
        self.aa += float(u @ u)
        self.bb += float(v @ v)
        self.ab += float(u @ v)
        self.ee += float(e @ e)
        self.max_abs = max(self.max_abs, float(np.abs(e).max(initial=0.0)))
        if a.ndim > 1 and a.size:
            self._see(u.reshape(len(a), -1), e.reshape(len(a), -1), start)

    def _see(self, signal: np.ndarray, noise: np.ndarray, start: int) -> None:
        each = [sqnr(float(u @ u), float(e @ e)) for u, e in zip(signal, noise, strict=True)]
        last = int(np.argmin(each))
        if self.worst is None or each[last] < self.worst[1]:
            self.worst = (start + last, each[last])

    def result(self, name: str, measure: Measure | None, figures: list[Figure]) -> OutputCheck:
        agreement = measure.agreement if isinstance(measure, Classes) else None
        kind = measure.kind if measure is not None else Kind.VALUES
        if self.broken:
            return OutputCheck(name, -math.inf, 0.0, math.inf, None if agreement is None else 0.0, kind)
        cosine = self.ab / math.sqrt(self.aa * self.bb) if self.aa and self.bb else float(self.aa == self.bb)
        return OutputCheck(
            name, sqnr(self.aa, self.ee), cosine, self.max_abs, agreement, kind, figures, self.worst,
            measure is None or measure.nature.sure, measure.change if isinstance(measure, Classes) else 1.0,
        )  # fmt: skip


def sqnr(signal: float, noise: float) -> float:
    """Signal to noise in dB of two sums of squares; inf without noise."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def compare_outputs(
    a: Runner,
    b: Runner,
    batches: Iterable[Arrays],
    gate: Gate | None = None,
    find: Find = lambda outputs: {},
    see: Sequence[See] = (),
) -> tuple[list[OutputCheck], int]:
    """Compare all float outputs of two runners over batches; also how many samples were seen.

    Args:
        a: The float model.
        b: The other one.
        batches: What both read.
        gate: The bars of the figures.
        find: Natures of outputs, from those of the first batch. By default none: SQNR and cosine alone.
        see: Two that get the outputs of ``a`` and of ``b``, batch by batch, or none.
    """
    sums: dict[str, _Sums] = {}
    measures: dict[str, Measure] | None = None
    samples = 0
    for feeds in batches:
        left, right = a(feeds), b(feeds)
        for look, outputs in zip(see, (left, right), strict=False):
            look(outputs)
        if measures is None:
            measures = {n: MEASURES[nature.kind](n, nature) for n, nature in find(left).items()}
        for name, x in left.items():
            if x.dtype.kind in "fV" or x.dtype.name == "bfloat16":
                sums.setdefault(name, _Sums()).add(x, right[name], samples)
        whole = {n: s for n, s in sums.items() if not s.broken}
        for name, measure in measures.items():
            if name in whole and (not isinstance(measure, Rows) or measure.nature.boxes in (*whole, "")):
                measure.add(left, right)
        samples += max((len(x) for x in feeds.values() if x.ndim), default=1)
    found = measures or {}
    return [
        s.result(n, found.get(n), list(found[n].figures(gate or Gate())) if n in found and not s.broken else [])
        for n, s in sums.items()
    ], samples


def judge(outputs: Sequence[OutputCheck], samples: int, gate: Gate) -> GateResult:
    """The verdict on a comparison."""
    found = GateResult(list(outputs), samples)
    for o in outputs:
        own = o.sure and o.kind != Kind.VALUES and bool(o.figures)
        least_db = min(gate.min_sqnr, FLOOR_DB) if own else gate.min_sqnr
        least_cosine = min(gate.min_cosine, FLOOR_COSINE) if own else gate.min_cosine
        for value, least, what in (
            (o.sqnr, least_db, "SQNR {:.1f} dB, asked {:.1f}"),
            (o.cosine, least_cosine, "cosine {:.4f}, asked {:.4f}"),
        ):
            if not value >= least:
                found.failures.append(f"output {o.name!r}: {what.format(value, least)}")
        for f in o.figures:
            _put_down(found, o.name, f)
    return found


def told(found: GateResult, lost: Figure, gate: Gate) -> None:
    """Add what labels say of the first output. Where they are sure that it is good, estimates of it do not count."""
    first = found.outputs[0]
    if lost.verdict is Verdict.PASSED and first.kind == Kind.CLASSES:
        kept = judge([replace(o, figures=[] if o is first else o.figures) for o in found.outputs], found.samples, gate)
        found.failures, found.unsure = kept.failures, kept.unsure
    first.figures = [*first.figures, lost]
    _put_down(found, first.name, lost)


def _put_down(found: GateResult, name: str, f: Figure) -> None:
    if f.verdict is not Verdict.PASSED:
        into = found.failures if f.verdict is Verdict.FAILED else found.unsure
        into.append(f"output {name!r}: {f.what} {f.value:.3g} ({f.low:.3g} to {f.high:.3g}), asked {f.asked:g}")
