"""One architecture by some stages, in a process of its own: a JSON line for each. See ``__main__``."""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.utils import _pytree as pytree

from graphpress import pipeline
from graphpress.errors import GraphpressError
from graphpress.frontends import torch_export, torch_results
from graphpress.job import engine
from graphpress.job.compile import compile
from graphpress.job.gate import sqnr
from graphpress.job.job import context
from graphpress.passes.structure.layers.overview import overview
from graphpress.recipe import Recipe
from graphpress.target import Target
from graphpress.tools.bench.architectures.architecture import Architecture
from graphpress.tools.bench.architectures.listed import listed
from graphpress.tools.bench.cell import quick

BATCH, SAMPLES, DRAWS = 2, 16, 8  # samples of a call and of calibration; calls that are compared with the module
EQUAL = 80.0  # dB from which two float32 programs of one function count as equal
_LIKE_OWN = 6.0  # dB that they may be farther apart than float32 and float64, where that is less
DRAWN = "drawn"  # among the counts of a module that no two calls of give the same
STAGES = ("trace", "parity", "ffn", "w8a8", "dynamic", "gptq", "rot", "smooth", "sparse24", "acm", "torch-cpu")
_RECIPES = {
    "w8a8": "w8a8", "dynamic": "w8a8-dynamic", "gptq": "w4a16-gptq", "smooth": "w8a8-smooth", "sparse24": "sparse24",
    "acm": "acm", "torch-cpu": "w8a8",
}  # fmt: skip
_COUNTED = {"smooth": ("smooth", "places"), "acm": ("acm", "blocks"), "sparse24": ("prune", "pruned")}


@dataclass
class Entry:
    """What came of one architecture at one stage.

    Attributes:
        recipe: The stage; it has this name for ``children.lines``.
        model: The architecture.
        ok: Whether the stage did what it is for.
        dB: Of the first output that is not empty, against the module in torch.
        counts: Figures of the stage, by name.
        why: The reason where it is not ok, or where something was left.
        crash: Whether that is no refusal of ours.
        seconds: For all of it.
    """

    recipe: str
    model: str
    ok: bool = True
    dB: float | None = None  # noqa: N815 - the unit
    counts: dict[str, float] = field(default_factory=dict)
    why: str = ""
    crash: bool = False
    seconds: float = 0.0


class Subject:
    """An architecture with what its stages have in common, made when first asked for."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture

    @cached_property
    def module(self) -> torch.nn.Module:
        return self.architecture.module()

    @cached_property
    def model(self) -> ir.Model:
        return torch_export.trace(self.module, (), self.architecture.draw(BATCH, 0))

    @cached_property
    def clean(self) -> ir.Model:
        """The graph as passes see it."""
        ctx = context(Target.load("ort-cpu"), None)
        return pipeline.Pipeline([*Recipe.load("clean").passes]).run(self.model, ctx)[0]

    @cached_property
    def data(self) -> dict[str, np.ndarray] | list[dict[str, np.ndarray]]:
        """Calibration samples by the names of the graph's inputs; whole feeds where one has no axis of samples."""
        arrays = self._arrays(self.architecture.draw(SAMPLES, 1))
        if all(a.ndim and len(a) == SAMPLES for a in arrays.values()):
            return arrays
        return [self._arrays(self.architecture.draw(BATCH, 100 + i)) for i in range(SAMPLES // BATCH)]

    @cached_property
    def wanted(self) -> list[list[np.ndarray]]:
        """What the module gives for each draw of fresh samples."""
        return [_called(self.module, self.architecture.draw(BATCH, 2 + i)) for i in range(DRAWS)]

    def _arrays(self, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
        names = {v.name for v in self.model.graph.inputs}
        return {k: t.numpy() for k, t in given.items() if k in names and isinstance(t, torch.Tensor)}

    def run(self, model: ir.Model, target: Target, draws: int = DRAWS) -> list[list[np.ndarray]]:
        """What a graph gives for the first of those draws."""
        run = engine.of(target).execute(model, target=target)
        fresh = [self._arrays(self.architecture.draw(BATCH, 2 + i)) for i in range(draws)]
        return [list(run(feeds).values()) for feeds in fresh]


def fill(subject: Subject, stage: str) -> Entry:
    """Go through one stage; errors become the entry's."""
    entry, start = Entry(stage, subject.architecture.name), time.perf_counter()
    try:
        _STAGES.get(stage, _compiled)(subject, entry)
    except Exception as e:  # noqa: BLE001 - an entry must say what happened, whatever it was
        entry.ok, entry.crash = False, not isinstance(e, GraphpressError)
        entry.why = " ".join(f"{type(e).__name__ + ': ' if entry.crash else ''}{e}".split())[:400]
        if entry.crash:
            print(traceback.format_exc(), file=sys.stderr)
    entry.seconds = round(time.perf_counter() - start, 2)
    return entry


def _trace(subject: Subject, entry: Entry) -> None:
    entry.counts = {"nodes": len(subject.model.graph)}


def _parity(subject: Subject, entry: Entry) -> None:
    """Every output, floats within rounding, all else equal; or no farther than rounding alone moves the module."""
    if _drawn(subject):
        entry.ok, entry.counts = False, {DRAWN: 1}
        entry.why = "it draws random numbers: two calls of the module give different outputs, so nothing compares"
        return
    (given,), wanted = subject.run(subject.model, Target.load("ort-cpu"), 1), subject.wanted[0]
    kinds = [a.dtype.kind for a in wanted]
    if len(given) != len(wanted):
        entry.ok, entry.why = False, f"{len(given)} outputs, and {len(kinds)} of the module"
        return
    worst = math.inf
    for i, (a, b) in enumerate(zip(given, wanted, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            entry.ok, entry.why = False, f"output {i}: {a.dtype} {a.shape}, and {b.dtype} {b.shape} of the module"
            return
        worst = min(worst, _decibels(a, b))
    entry.dB, entry.ok = worst, worst >= EQUAL
    if not entry.ok:
        entry.counts = {"own": _own(subject)}
        entry.ok = worst >= entry.counts["own"] - _LIKE_OWN
    entry.why = "" if entry.ok else f"worst of {len(kinds)} outputs"


def _drawn(subject: Subject) -> bool:
    """Whether the module gives something else at each call."""
    once, again = (_called(subject.module, subject.architecture.draw(BATCH, 2)) for _ in range(2))
    pairs = zip(once, again, strict=True)
    return any(a.shape != b.shape or not np.array_equal(a, b, equal_nan=a.dtype.kind in "fc") for a, b in pairs)


def _own(subject: Subject) -> float:
    """dB between the module in float32 and in float64: little where it chooses between near ties, as a top-k does."""
    given = subject.architecture.draw(BATCH, 2)
    wide = {k: t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for k, t in given.items()}
    module = subject.architecture.module()
    narrow, exact = _called(module, given), _called(module.double(), wide)
    return min(_decibels(a, b.astype(a.dtype)) for a, b in zip(narrow, exact, strict=True))


def _called(module: torch.nn.Module, given: Mapping[str, Any]) -> list[np.ndarray]:
    with torch.no_grad():
        made = torch_results.plain(module(**given), module)
    return [t.numpy() for t in pytree.tree_leaves(made) if isinstance(t, torch.Tensor)]


def _ffn(subject: Subject, entry: Entry) -> None:
    """Whether the feed-forward blocks of all layers are found; poolers and heads may be among them."""
    found = overview(subject.clean).blocks
    known, wanted = sum(not b["blocked"] for b in found), subject.architecture.ffn
    entry.counts, entry.ok = {"blocks": known, "of": wanted}, known >= wanted
    refused = "; ".join(f"{b['name']}: {b['blocked']}" for b in found if b["blocked"])
    entry.why = "" if entry.ok else refused[:300] or "nothing else looks like one"


def _decibels(given: np.ndarray, wanted: np.ndarray) -> float:
    if wanted.dtype.kind not in "fc":
        return math.inf if np.array_equal(given, wanted) else -math.inf
    known = np.isfinite(wanted)
    if not np.array_equal(given[~known], wanted[~known], equal_nan=True):
        return -math.inf
    a, b = (x[known].astype(np.complex128 if x.dtype.kind == "c" else np.float64) for x in (given, wanted))
    return min(sqnr(float((abs(b) ** 2).sum()), float((abs(a - b) ** 2).sum())), 200.0)


def _first(given: Sequence[Sequence[np.ndarray]], wanted: Sequence[Sequence[np.ndarray]]) -> float:
    """Of the first output of floats that are not all alike, all draws taken together."""
    told = (i for i, b in enumerate(wanted[0]) if b.dtype.kind == "f" and b.size and np.ptp(b) > 0)
    if (i := next(told, None)) is None:
        return math.inf
    pairs = [(a[i], b[i]) for a, b in zip(given, wanted, strict=True)]
    if any(a.shape != b.shape for a, b in pairs):
        return -math.inf
    made, asked = (np.concatenate([x.ravel() for x in side]) for side in zip(*pairs, strict=True))
    return _decibels(made, asked)


def _compiled(subject: Subject, entry: Entry) -> None:
    target = Target.load("torch-cpu" if entry.recipe == "torch-cpu" else "ort-cpu")
    recipe = quick(Recipe.load(_RECIPES[entry.recipe]))
    low, report = compile(subject.model, recipe, subject.data, target, gate=False, prove=False)
    entry.dB = _first(subject.run(low, target), subject.wanted)
    rewritten = sum(bool(s.scheme) for s in report.sites)
    entry.counts = {"sites": len(report.sites), "rewritten": rewritten, "samples": BATCH * DRAWS}
    if (own := _COUNTED.get(entry.recipe)) is not None:
        entry.counts[own[1]] = sum(p.changed for p in report.passes if p.name == own[0])
    if not (rewritten or (own and entry.counts[own[1]])):
        entry.ok, entry.why = False, report.idle[0].why if report.idle else "nothing was there to change"
    if not math.isfinite(entry.dB or 0.0) and entry.dB != math.inf:
        entry.ok, entry.why = False, "the output is not finite, or of another shape"


def _rot(subject: Subject, entry: Entry) -> None:
    """What rotation finds and turns: streams (R1), values (R2), MLP hidden values (R4)."""
    target = Target.load("ort-cpu")
    found = overview(subject.clean)
    rotate = [p for p in Recipe.load("w4a4-rot").passes if p.name in ("fold-norms", "rotate")]
    turned, report = pipeline.Pipeline(rotate).run(subject.clean, context(target, None))
    metrics = {k: v for p in report for k, v in p.metrics.items()}
    names = ("residual streams", "value heads", "down projections")
    for label, name, have in zip(("R1", "R2", "R4"), names, (found.streams, found.heads, found.pairs), strict=True):
        entry.counts[label], entry.counts[f"{label} of"] = float(metrics.get(f"{name} turned", 0)), len(have)
    entry.dB = _first(subject.run(turned, target, 1), subject.wanted[:1])
    kept = entry.dB >= EQUAL - 20 or entry.dB >= _own(subject) - _LIKE_OWN
    entry.ok = kept and bool(entry.counts["R1"] or not subject.architecture.prenorm)
    skips = [s for p in report if p.name == "rotate" for s in p.skips]
    streams = [s.why for s in skips if s.why.startswith("residual stream")] or [s.why for s in skips]
    entry.why = "the outputs moved" if not kept else streams[0][:300] if streams else ""


_STAGES: dict[str, Callable[[Subject, Entry], None]] = {"trace": _trace, "parity": _parity, "ffn": _ffn, "rot": _rot}


def main(argv: Sequence[str] | None = None) -> int:
    """Print one JSON line per stage."""
    parser = argparse.ArgumentParser(prog="graphpress.tools.bench.architectures.stages", description=__doc__)
    parser.add_argument("--models", required=True, help="an architecture's name")
    parser.add_argument("--recipes", required=True, help="stages, commas between them")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    (architecture,) = (a for a in listed() if a.name == args.models)
    subject = Subject(architecture)
    for stage in args.recipes.split(","):
        print(json.dumps(asdict(fill(subject, stage))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
