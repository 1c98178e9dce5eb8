"""Entries as a page: a table for each family, the bars, and every reason once."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from graphpress.tools.bench.architectures.architecture import Architecture
from graphpress.tools.bench.architectures.stages import BATCH, DRAWN, DRAWS, EQUAL, STAGES, Entry

_PATH = re.compile(r"(?:/[\w.+-]+)+/((?:[\w.+-]+/)?[\w.+-]+\.py)")  # of this machine
Key: TypeAlias = tuple[str, str]  # architecture, stage
SMOOTH_LOSS = 0.3  # dB that SmoothQuant may stay below w8a8
_TRACED, _TURNED = 0.95, 0.8  # shares asked for: of all that trace, of pre-norm transformers whose stream is turned
_HEAD = """# Architectures

Written by `python -m graphpress.tools.bench.architectures --out FILE --page docs/figures/architectures.md` (extra
`models`), at quick settings: {count} of {total} models of transformers, diffusers and timm in their default
configurations but for their size (two layers, width 16 to 64), with random weights, gains and biases.

A figure is the SQNR in dB of the first output against the module in torch, of {samples} samples{but}. trace: the
number of nodes; parity: the worst of all outputs in float32, from {equal:g} dB on `yes`, below also where torch itself
is as far apart in float32 and in float64 (`own`: it chooses between near ties); ffn: the feed-forward blocks of linear
layers that were found, of those its layers have (poolers and heads are found as well); rot: what was turned of what was
found, of residual streams (R1), values of attention (R2), hidden values of MLPs (R4), in float32; smooth: in brackets
the difference to w8a8; acm: feed-forward blocks that were replaced. `-`: there is nothing that the recipe is for, or
nothing to compare with, as the module draws random numbers (no bar of a comparison counts it); `no`: refused, failed,
not all found, or, for a residual stream of a pre-norm transformer, not turned; empty: not run.
"""


def render(found: Mapping[Key, Entry], wanted: Sequence[Architecture]) -> str:
    """The page."""
    few = {k[0] for k, e in found.items() if "sites" in e.counts and e.counts.get("samples") != BATCH * DRAWS}
    but = f" (but for {len(few)} models, of {BATCH})" if few else ""
    head = _HEAD.format(
        count=len({k[0] for k in found}), total=len(wanted), equal=EQUAL, samples=BATCH * DRAWS, but=but
    )
    parts = [head, *_bars(found, wanted)]
    numbers: dict[str, int] = {}
    for family in dict.fromkeys(a.family for a in wanted):
        models = [a for a in wanted if a.family == family and any((a.name, s) in found for s in STAGES)]
        if models:
            parts += [f"\n## {family[0].upper()}{family[1:]}\n", f"| | {' | '.join(STAGES)} |"]
            parts += ["|---" * (len(STAGES) + 1) + "|"]
            for a in models:
                row = (_cell(found, a, stage, numbers) for stage in STAGES)
                parts.append(f"| {a.name} | {' | '.join(row)} |")
    reasons = [f"{number}. {why}" for why, number in numbers.items()]
    return "\n".join([*parts, *(["\n## Reasons\n", *reasons] if reasons else [])]) + "\n"


def _cell(found: Mapping[Key, Entry], architecture: Architecture, stage: str, numbers: dict[str, int]) -> str:
    entry = found.get((architecture.name, stage))
    if entry is None:
        return ""
    text = _said(entry, found.get((architecture.name, "w8a8")))
    if entry.ok or not entry.why:
        return text
    why = " ".join(_PATH.sub(r"\1", entry.why).replace("|", "/").split())
    return f"{text}<sup>{numbers.setdefault(why, len(numbers) + 1)}</sup>"


def _said(entry: Entry, plain: Entry | None) -> str:
    counts = {k: int(v) for k, v in entry.counts.items()}
    if entry.recipe == "rot" and counts:
        turned = ", ".join(f"{r} {counts[r]}/{counts[f'{r} of']}" for r in ("R1", "R2", "R4"))
        return turned if entry.ok else f"no, {turned}"
    if entry.recipe == "ffn" and counts:
        return f"{counts['blocks']}/{counts['of']}" if counts["blocks"] or counts["of"] else "-"
    if DRAWN in counts:
        return "-"
    if not entry.ok:
        return "no" if entry.crash or entry.dB is None or entry.recipe == "parity" else "-"
    if entry.recipe == "trace":
        return str(counts["nodes"])
    if entry.recipe == "parity":
        return f"yes ({entry.dB:.0f}, own {entry.counts['own']:.0f})" if "own" in counts else "yes"
    figure = "exact" if entry.dB is None or math.isinf(entry.dB) else f"{entry.dB:.1f}"
    if entry.recipe == "smooth" and plain is not None and plain.dB is not None and entry.dB is not None:
        return f"{figure} ({entry.dB - plain.dB:+.1f})"
    return f"{counts['blocks']}: {figure}" if entry.recipe == "acm" else figure


def _bars(found: Mapping[Key, Entry], wanted: Sequence[Architecture]) -> Iterator[str]:
    yield "| bar | asked | holds | not run |"
    yield "|---|---|---|---|"
    for what, asked, good, every, left in _counted(found, wanted):
        yield f"| {what} | {asked:.0%} | {len(good)} of {len(every)} | {left} |"


def misses(found: Mapping[Key, Entry], wanted: Sequence[Architecture]) -> list[str]:
    """The bars that are missed."""
    return [what for what, asked, good, every, _ in _counted(found, wanted) if len(good) < asked * len(every)]


def _counted(
    found: Mapping[Key, Entry], wanted: Sequence[Architecture]
) -> Iterator[tuple[str, float, list[str], list[str], int]]:
    """(bar, share asked, who holds it, who should, how many were not run)."""

    def of(stage: str, among: Sequence[str]) -> list[str]:
        return [name for name in among if (name, stage) in found]

    def good(stage: str, among: Sequence[str]) -> list[str]:
        return [name for name in of(stage, among) if found[name, stage].ok]

    names = [a.name for a in wanted]
    traced = good("trace", names)
    yield "traced in the default configuration", _TRACED, traced, (run := of("trace", names)), len(names) - len(run)
    alike = [n for n in traced if (n, "parity") not in found or DRAWN not in found[n, "parity"].counts]
    for stage, what in (("parity", "same outputs as torch"), ("w8a8", "w8a8"), ("gptq", "w4a16-gptq")):
        run = of(stage, alike)
        yield f"{what}, of those traced", 1.0, good(stage, alike), run, len(alike) - len(run)
    wide = [a.name for a in wanted if a.prenorm and a.name in traced]
    run = of("rot", wide)
    turned = [n for n in run if found[n, "rot"].counts.get("R1")]
    yield "R1, of pre-norm transformers", _TURNED, turned, run, len(wide) - len(run)
    both = [n for n in of("smooth", alike) if found.get((n, "w8a8"), Entry("", "", False)).ok]
    near = [n for n in both if _gap(found, n) >= -SMOOTH_LOSS]
    yield f"SmoothQuant at most {SMOOTH_LOSS} dB below w8a8", 1.0, near, both, len(alike) - len(both)
    forward = [a.name for a in wanted if a.ffn and a.name in traced]
    run = of("ffn", forward)
    yield "all feed-forward blocks found, where there are any", 1.0, good("ffn", run), run, len(forward) - len(run)


def _gap(found: Mapping[Key, Entry], name: str) -> float:
    smooth, plain = found[name, "smooth"].dB, found[name, "w8a8"].dB
    return -math.inf if smooth is None or plain is None else 0.0 if smooth == plain else smooth - plain
