"""Rows as the tables of the README, and the bars that they are held to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from graphpress.tools.bench.results import Results
from graphpress.tools.bench.row import BenchRow

_HEAD = "| model | metric | float | compressed | size MB | batch 1 | batch 32 | compile s | integer MACs |"
_RULE = "|---|---|---|---|---|---|---|---|---|"
_STATUS = {"gate": "below the gate", "refused": "refused", "crash": "crashed"}


def render(results: Results) -> str:
    """One table a recipe, models in the order of the rows; latency is compressed over float in interleaved runs."""
    parts = [f"Measured on {results.machine}. Latency as a share of the float model's, in interleaved runs."]
    for recipe in dict.fromkeys(r.recipe for r in results.rows):
        rows = [_line(r) for r in results.rows if r.recipe == recipe]
        parts.append("\n".join([f"**{recipe}**", "", _HEAD, _RULE, *rows]))
    if notes := {r.model: r.note for r in results.rows if r.note}:
        parts.append("\n".join(f"- {model}: {note}." for model, note in notes.items()))
    if reasons := [_reason(r) for r in results.rows if r.status != "ok"]:
        parts.append("\n".join(reasons))
    return "\n\n".join(parts) + "\n"


def _line(row: BenchRow) -> str:
    model = row.model if row.status == "ok" else f"{row.model} ({_STATUS[row.status]})"
    cells = [
        model,
        row.metric or "-",
        _figure(row, row.before),
        _figure(row, row.after),
        _size(row),
        _latency(row, "1"),
    ]
    cells += [_latency(row, "32"), _number(row.seconds, ".1f"), _number(row.integer, ".1%")]
    return f"| {' | '.join(cells)} |"


def _figure(row: BenchRow, scores: Mapping[str, float]) -> str:
    return _number(scores.get(row.metric), ".4f" if row.kind == "language" else ".2f")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)


def _size(row: BenchRow) -> str:
    if row.bytes is None:
        return "-"
    before, after = row.bytes
    return f"{before / 1e6:.2f} → {after / 1e6:.2f}"


def _latency(row: BenchRow, batch: str) -> str:
    return f"{row.latency[batch]['ratio']:.2f}x" if batch in row.latency else "-"


def _reason(row: BenchRow) -> str:
    return f"- {row.model}, {row.recipe}: {_STATUS[row.status]}: {' '.join(row.reason.split())[:300]}"


def missed(rows: Sequence[BenchRow]) -> list[str]:
    """What falls short of the project's bars, one sentence each.

    W8A8 costs at most 0.3 points on a classifier (MobileNets 1.0), runs 95 % of a CNN's multiply-adds on integer
    kernels and takes at most 0.6 of float's time at batch 32; dynamic W8A8 takes a transformer at most half of it at
    256 tokens.
    """
    return [f"{r.model}, {r.recipe}: {short}" for r in rows for short in _shortfalls(r)]


def _shortfalls(row: BenchRow) -> Iterator[str]:
    if row.status in ("refused", "crash"):
        yield row.status
    elif row.recipe == "w8a8" and row.kind in ("classifier", "detector"):
        yield from _cnn(row)
    elif row.recipe == "w8a8-dynamic" and row.kind == "language":
        yield from _slow(row, "1", 0.5)


def _cnn(row: BenchRow) -> Iterator[str]:
    if row.kind == "classifier":
        allowed = 1.0 if row.model.startswith("mobilenet") else 0.3
        lost = row.before[row.metric] - row.after[row.metric]
        if lost > allowed + 1e-9:
            yield f"costs {lost:.2f} points, allowed {allowed}"
    if row.integer is not None and row.integer < 0.95:
        yield f"{row.integer:.1%} of the multiply-adds on integer kernels, asked 95 %"
    yield from _slow(row, "32", 0.6)


def _slow(row: BenchRow, batch: str, allowed: float) -> Iterator[str]:
    if batch in row.latency and (ratio := row.latency[batch]["ratio"]) > allowed:
        yield f"{ratio:.2f}x of float's time at batch {batch}, allowed {allowed}"
