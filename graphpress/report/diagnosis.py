"""Where the noise comes from: the float model and the quantized one, compared at every site on a few samples.

A pass may move what a site computes behind a BatchNormalization or a Relu that it absorbs, so values are not matched by
their names but by their readers: what an operator that stands in both models reads in the one has its counterpart in
what it reads in the other.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphpress.errors import GateError
from graphpress.graph import edit, movement, quantized
from graphpress.graph.grid import is_quantize
from graphpress.job.gate import sqnr
from graphpress.keys import ORIGIN
from graphpress.observe.inner import InnerValues
from graphpress.report.report import Report, SiteRow
from graphpress.runner import Arrays, Executor
from graphpress.types import Role, Site

# What comes in noisy may leave noisier without a fault of the operator: where large parts of the signal cancel.
AMPLIFIED = 8.0
_BINS = 64
_BLOCK = 1 << 13  # elements compared at a time: in the cache, and too few for BLAS to wake threads for a product
_FIX = "Leave sites in float with quantize.ignore or --max-drop, or lower the gate."
_REACH = 16  # nodes that passes made between a site and its reader


@dataclass(frozen=True)
class Compared:
    """One value of the float model and what stands for it in the quantized one, by name."""

    before: str
    after: str


def measure(before: ir.Model, after: ir.Model, sites: Iterable[SiteRow], feeds: Arrays, execute: Executor) -> None:
    """Fill in ``sqnr`` (dB, all noise at the site's output) and ``added`` (its own part) or ``unmeasured``, the reason.

    Args:
        before: The float model.
        after: The quantized one, not yet lowered.
        sites: Rows named after operators of ``before``.
        feeds: A few samples.
        execute: Builds the runners of both.
    """
    after = after.clone()
    rows = {s.node: s for s in sites}
    found = {n.name or "": n for n in edit.nodes(after)}
    old = {n.name or "": n for n in edit.nodes(before)}
    pairs = {name: _output(found[name], old) for name in rows if name in found}
    sources = {name: list(_inputs(old[name], found[name])) for name in pairs if name in old}
    wanted = [p for p in pairs.values() if p is not None] + [p for ps in sources.values() for p in ps]
    noise = _Noise(before, after, wanted, feeds, execute)
    for name, row in rows.items():
        pair = pairs.get(name)
        if pair is None:
            row.unmeasured = "nothing that reads it is left" if name in pairs else "it is no longer there"
            continue
        share, row.unmeasured = noise.of(pair)
        if share is not None:
            brought = [s for p in sources.get(name, []) if (s := noise.of(p)[0]) is not None]
            row.sqnr = sqnr(1.0, share)
            row.added = max(share - AMPLIFIED * max(brought, default=0.0), 0.0)


def blame(sites: Iterable[SiteRow], count: int = 5) -> list[tuple[str, float]]:
    """The quantized sites that add most noise, worst first, each with the SQNR in dB at its output.

    What only moves data comes last: it adds none that what it reads from does not.
    """
    known = [s for s in sites if s.scheme and s.sqnr is not None]
    known.sort(key=lambda s: (s.op in movement.TABLE and not s.weights, -s.added, s.sqnr))
    return [(s.node, s.sqnr) for s in known[:count] if s.sqnr is not None]


def gate_error(model: ir.Model, report: Report) -> GateError:
    """What is below the gate, with the sites most to blame, the model and the report."""
    blame = ", ".join(f"{n} ({db:.1f} dB)" for n, db in report.gate.blame)
    error = GateError(
        "below the accuracy gate: "
        + "; ".join(report.gate.failures)
        + (f". Sites most to blame: {blame}" if blame else ""),
        where=f"recipe {report.recipe!r}",
        fix=". ".join([*report.gate.remedy, ""]).strip() or _FIX,
    )
    error.model, error.report = model, report
    return error


def worst_histograms(
    sites: Sequence[SiteRow], histograms: Mapping[str, dict[str, Any]], count: int = 8
) -> dict[str, dict[str, Any]]:
    """The histograms of at most ``count`` edges, those of the operators with the lowest SQNR first."""
    order = {s.node: (s.sqnr if s.sqnr is not None else math.inf) for s in sites}
    edges = [Site.parse(name) for name in histograms]
    edges.sort(key=lambda e: (order.get(e.node, math.inf), e.node, e.role is not Role.OUTPUT, e.slot))
    return {str(e): histograms[str(e)] for e in edges[:count]}


def weight_histograms(model: ir.Model, sites: Iterable[SiteRow], count: int = 8) -> dict[str, dict[str, Any]]:
    """Of the float weights of the ``count`` quantized operators with the lowest SQNR, for want of activations."""
    known = sorted((s for s in sites if s.scheme and s.sqnr is not None), key=lambda s: s.sqnr or 0.0)
    wanted = {s.node for s in known[:count]}
    found = {}
    for node in edit.nodes(model):
        for slot, value in enumerate(node.inputs) if node.name in wanted else ():
            array = edit.constant(value)
            if array is not None and array.ndim >= 2 and array.size:
                counts, edges = np.histogram(array.astype(np.float32), bins=_BINS)
                low, high = float(edges[0]), float(edges[-1])
                found[str(Site(node.name or "", slot, Role.WEIGHT))] = {
                    "counts": counts.tolist(), "start": low, "width": (high - low) / _BINS,
                    "min": low, "max": high, "lo": low, "hi": high,
                }  # fmt: skip
    return found


def _output(node: ir.Node, old: Mapping[str, ir.Node]) -> Compared | None:
    """An output of ``node`` as the nearest reader that is in both models gets it, or as the caller does."""
    waiting = deque(v for v in node.outputs if v.name)
    for _ in range(_REACH):
        if not waiting:
            return None
        value = waiting.popleft()
        if value.is_graph_output() and value.name and (own := _named(old, value)) is not None:
            return Compared(own, value.name)
        for use in value.uses():
            reader = old.get(use.node.name or "")
            if reader is None or reader.op_type != use.node.op_type:
                waiting.extend(use.node.outputs[:1])
            elif use.idx < len(reader.inputs) and (read := reader.inputs[use.idx]) is not None:
                return Compared(read.name or "", _float(value).name or "")
    return None


def _float(value: ir.Value) -> ir.Value:
    """The value as a float: dequantized, by a node made for it, where its reader moves integers."""
    node = source = value.producer()
    while source is not None and not is_quantize(source) and not _is_float(source.outputs[0]):
        source = source.inputs[0].producer() if source.inputs and source.inputs[0] is not None else None
    if node is None or not is_quantize(source) or source.inputs[0] is None:
        return value
    made = edit.new_node("DequantizeLinear", [value, *source.inputs[1:]], dict(source.attributes), after=node)
    made.outputs[0].shape, made.outputs[0].type = value.shape, source.inputs[0].type
    return made.outputs[0]


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def _named(old: Mapping[str, ir.Node], value: ir.Value) -> str | None:
    """The output of a graph keeps its name."""
    same = (v for n in old.values() for v in n.outputs if v.is_graph_output() and v.name == value.name)
    return next((v.name for v in same), None)


def _inputs(old: ir.Node, new: ir.Node) -> Iterator[Compared]:
    """What an operator computes with in both models; at most one pair a slot, constants left out."""
    if old.op_type == new.op_type:
        for a, b in zip(old.inputs, new.inputs, strict=False):
            if a is not None and b is not None and not edit.is_constant(a):
                source = _unquantized(b, new.name or "")
                if a.name and source.name:
                    yield Compared(a.name, source.name)


def _unquantized(value: ir.Value, reader: str) -> ir.Value:
    """What went into the conversions that were made for ``reader``: their noise is its own."""
    for kind in (quantized.decodes, quantized.encodes):
        node = value.producer()
        if not kind(node) or node.metadata_props.get(ORIGIN) != reader or node.inputs[0] is None:
            return value
        value = node.inputs[0]
    return value


class _Noise:
    """The noise of pairs as a share of the signal, from one run of each model."""

    def __init__(
        self, before: ir.Model, after: ir.Model, pairs: Sequence[Compared], feeds: Arrays, execute: Executor
    ) -> None:
        self.before = _seen(before, [p.before for p in pairs], feeds, execute)
        self.after = _seen(after, [p.after for p in pairs], feeds, execute)

        self.known: dict[Compared, tuple[float | None, str]] = {}  # what a site gives, the next one reads

    def of(self, pair: Compared) -> tuple[float | None, str]:
        if pair not in self.known:
            self.known[pair] = self._compare(self.before[pair.before], self.after[pair.after])
        return self.known[pair]

    def _compare(self, a: np.ndarray | str, b: np.ndarray | str) -> tuple[float | None, str]:
        if isinstance(a, str) or isinstance(b, str):
            return None, a if isinstance(a, str) else str(b)
        if a.shape != b.shape:
            return None, f"its shape changed from {list(a.shape)} to {list(b.shape)}"
        if not a.size:
            return None, "its branch did not run"
        signal, noise = _energies(a.ravel(), b.ravel())
        if not signal or not math.isfinite(noise / signal):
            return (0.0, "") if not noise and not signal else (None, "it is zero or not finite")
        return noise / signal, ""


def _energies(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Sums of squares of ``a`` and of ``a - b``, both flat, in float64."""
    signal = noise = 0.0
    for i in range(0, a.size, _BLOCK):
        u = a[i : i + _BLOCK].astype(np.float64)
        difference = u - b[i : i + _BLOCK].astype(np.float64)
        signal, noise = signal + float(u @ u), noise + float(difference @ difference)
    return signal, noise


def _seen(model: ir.Model, names: Sequence[str], feeds: Arrays, execute: Executor) -> dict[str, np.ndarray | str]:
    """Values of any graph of a model on one batch, or why they cannot be seen."""
    values = InnerValues.of(model, names, execute)
    return {**values.unobserved, **values(feeds)}
