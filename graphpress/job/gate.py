"""The accuracy gate: the float model against the rewritten one on samples that calibration has not seen.

SQNR and cosine per output; agreement of the largest class where an output looks like class scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from graphpress.errors import BadRequest
from graphpress.runner import Arrays, Runner


@dataclass(frozen=True)
class Gate:
    """What the rewritten model must reach on the held-out samples.

    Attributes:
        samples: How many samples are held out of the data (at most a fifth of it) and compared.
        min_sqnr: Signal to quantization noise of every float output, in dB: 10 log10(sum a^2 / sum (a - b)^2).
        min_cosine: Cosine similarity of every float output.
        min_agreement: Share of samples whose largest class stays, for outputs [samples, classes].
    """

    samples: int = 64
    min_sqnr: float = 8.0
    min_cosine: float = 0.9
    min_agreement: float = 0.8

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise BadRequest("at least one sample is needed", where="gate option 'samples'")
        for name in ("min_cosine", "min_agreement"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadRequest("must lie between 0 and 1", where=f"gate option {name!r}")


@dataclass
class OutputCheck:
    """One output, summed over all samples."""

    name: str
    sqnr: float
    cosine: float
    max_abs: float
    agreement: float | None = None


@dataclass
class GateResult:
    """The verdict: ``failures`` says what is below the gate, ``blame`` names sites, worst first, with SQNR in dB."""

    outputs: list[OutputCheck] = field(default_factory=list)
    samples: int = 0
    failures: list[str] = field(default_factory=list)
    blame: list[tuple[str, float]] = field(default_factory=list)
    left_out: str = ""  # why there was no check, or why it says less

    @property
    def passed(self) -> bool:
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed}


class _Sums:
    """Running sums of one output: memory does not grow with the number of samples."""

    def __init__(self) -> None:
        self.aa = self.bb = self.ab = self.ee = self.max_abs = 0.0
        self.same = self.rows = 0
        self.classes = True
        self.broken = False

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        if a.shape != b.shape:
            self.broken = True
            return
        u, v = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
        finite = np.isfinite(u)
        self.broken |= not np.isfinite(v[finite]).all()
        self.classes &= a.ndim == 2 and a.shape[1] >= 3
        if self.classes:
            self.same += int((a.argmax(1) == b.argmax(1)).sum())
            self.rows += len(a)
        if self.broken:
            return
        u, v = u[finite], v[finite]
        e = u - v
        self.aa += float(u @ u)
        self.bb += float(v @ v)
        self.ab += float(u @ v)
        self.ee += float(e @ e)
        self.max_abs = max(self.max_abs, float(np.abs(e).max(initial=0.0)))

    def result(self, name: str) -> OutputCheck:
        if self.broken:
            return OutputCheck(name, -math.inf, 0.0, math.inf, 0.0 if self.rows else None)
        cosine = self.ab / math.sqrt(self.aa * self.bb) if self.aa and self.bb else float(self.aa == self.bb)
        return OutputCheck(
            name, sqnr(self.aa, self.ee), cosine, self.max_abs, self.same / self.rows if self.rows else None
        )


def sqnr(signal: float, noise: float) -> float:
    """Signal to noise in dB of two sums of squares; inf without noise."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def compare_outputs(a: Runner, b: Runner, batches: Iterable[Arrays]) -> tuple[list[OutputCheck], int]:
    """Compare all float outputs of two runners over batches; also how many samples were seen."""
    sums: dict[str, _Sums] = {}
    samples = 0
    for feeds in batches:
        left, right = a(feeds), b(feeds)
        samples += max((len(x) for x in feeds.values() if x.ndim), default=1)
        for name, x in left.items():
            if x.dtype.kind in "fV" or x.dtype.name == "bfloat16":
                sums.setdefault(name, _Sums()).add(x, right[name])
    return [s.result(name) for name, s in sums.items()], samples


def judge(outputs: Sequence[OutputCheck], samples: int, gate: Gate) -> GateResult:
    """The verdict on a comparison."""
    failures = []
    for o in outputs:
        for value, least, what in (
            (o.sqnr, gate.min_sqnr, "SQNR {:.1f} dB, asked {:.1f}"),
            (o.cosine, gate.min_cosine, "cosine {:.4f}, asked {:.4f}"),
            (o.agreement, gate.min_agreement, "top-1 agreement {:.3f}, asked {:.3f}"),
        ):
            if value is not None and not value >= least:
                failures.append(f"output {o.name!r}: {what.format(value, least)}")
    return GateResult(list(outputs), samples, failures)
