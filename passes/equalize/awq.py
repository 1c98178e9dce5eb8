"""``awq``: weights that loud activations meet are scaled up before they are rounded, and clipped where that helps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.observe.inner import stream
from graphpress.passes.equalize.factors import rounded_weight
from graphpress.passes.structure.channels.ledger import Ledger, factor
from graphpress.passes.structure.channels.moves import WRITER
from graphpress.passes.structure.layers.factor_places import FactorPlace, factor_places
from graphpress.passes.structure.layers.heads import find_heads
from graphpress.passes.structure.layers.linear import Linear, layers
from graphpress.types import Numerics, Scheme, Stage, per_channel, per_group

ALPHAS = tuple(i / 20 for i in range(20))
SHRUNK = tuple(1 - i / 20 for i in range(10))  # of the largest magnitude of a group
SMALLEST = 1e-4  # of a factor, before they are normed
ROWS = 512  # of what a layer reads, that the search looks at


@dataclass(frozen=True)
class Awq(Pass):
    """Scale and clip weights that alone will be quantized by what they read (Lin et al., AWQ, arXiv:2306.00978).

    ``s_j = (mean|x_j|)^alpha``, normed so that the largest times the smallest is 1: columns are multiplied, and what
    makes x takes the division, as for ``smooth``; where nothing can, the layers are clipped alone. alpha is of
    0, 1/20, .. 19/20 what leaves the least error at the outputs of all readers; 0 is rounding to nearest, so the best
    is no worse. Then the largest magnitude of each group of each row is shrunk to 1.00, 0.95, .. 0.55 of itself,
    whatever leaves the least error of the row on what it reads; not of queries and keys, as attention multiplies them.

    Attributes:
        weight, group_size: How weights will be stored, with one scale for so many elements; 0: for each row.
        symmetric: Without a zero point, likewise; else with one.
        clip: Search the clipping too.
        samples: Of the calibration data.
        batch_size: Samples at a time.
    """

    weight: Literal["int8", "uint8", "int4", "uint4", "int3", "int2", "uint2"] = "int4"
    group_size: int = 64
    symmetric: bool = True
    clip: bool = True
    samples: int = 64
    batch_size: int = 8

    name = "awq"
    numerics = Numerics.LOSSY
    needs = (Stage.FLOAT,)

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        """Rewrite weights and gains of ``model``.

        Raises:
            BadRequest: There is no data or nothing to run it on; an option out of range.
            CalibrationError: The data does not fit the model.
        """
        if self.group_size < 0 or self.samples < 1 or self.batch_size < 1:
            raise BadRequest("group_size is 0 or more, samples and batch_size at least 1", where="awq")
        ctx.need("data", "awq", "needs to see activations", "leave awq out of the recipe")
        found = factor_places(edit.nodes(model))
        views = [v for v in layers(list(edit.nodes(model))) if v.node.op_type != "Conv"]
        seen = self._observe(model, ctx, views) if views else {}
        for view, why in found.refused:
            report.skip(view.node, f"not scaled: {why}")
        for place in ctx.progress(found.places, "awq", len(found.places)):
            rows = seen.get(place.value.name or "")
            if rows is not None and len(rows):
                self._scale(place, rows, report)
        if self.clip:
            kept = _compared(model)
            for view in views:
                self._clip(view, seen, kept, report)

    def _observe(self, model: ir.Model, ctx: Context, views: Sequence[Linear]) -> dict[str, np.ndarray]:
        """Rows of what each layer reads, as it is before anything is scaled."""
        data, run = ctx.need("data", "awq").bind(model).take(self.samples, ctx.seed), ctx.need("run", "awq")
        names = list(dict.fromkeys(v.input.name or "" for v in views))
        batches, kept = -(-len(data) // self.batch_size), dict[str, list[np.ndarray]]()
        for values in stream(model, names, data, run, batch_size=self.batch_size, progress=ctx.progress).batches:
            for name, array in values.items():
                rows = array.reshape(-1, array.shape[-1]).astype(np.float32)
                rows = rows[np.isfinite(rows).all(axis=1)]
                some = np.linspace(0, len(rows) - 1, min(len(rows), -(-ROWS // batches))).astype(np.int64)
                kept.setdefault(name, []).append(rows[some])
        return {name: np.concatenate(parts) for name, parts in kept.items()}

    def _scale(self, place: FactorPlace, rows: np.ndarray, report: PassReport) -> None:
        weight = np.concatenate([r.weight() for r in place.readers]).astype(np.float32)
        _, alike = np.unique(place.carried.alike, return_inverse=True)
        loud = np.zeros(alike.max() + 1)
        np.maximum.at(loud, alike, np.abs(rows).mean(0))  # copies of a channel have one factor
        scheme = self._scheme(weight.shape[1])
        tried = {a: output_error(weight, rows, scheme, _factors(loud, a)[alike]) for a in ALPHAS}
        best = min(tried, key=lambda a: (tried[a], a))
        report.metrics[f"places with alpha {best:g}"] = float(report.metrics.get(f"places with alpha {best:g}", 0)) + 1
        if best == 0:
            return
        by_channel = _factors(loud, best)[alike]
        ledger, divided, multiplied = Ledger(), factor(by_channel, np.divide), factor(by_channel)
        for holder in place.carried.holders:
            ledger.add(holder, divided if holder.side == WRITER else multiplied)
        ledger.write()
        rows /= by_channel.astype(rows.dtype)
        report.changed += 1

    def _clip(self, view: Linear, seen: Mapping[str, np.ndarray], kept: set[ir.Node], report: PassReport) -> None:
        rows = seen.get(view.input.name or "")
        weight = view.weight().astype(np.float32)
        if view.node in kept or rows is None or not len(rows) or not np.isfinite(weight).all():
            return
        clipped = clip(weight, rows, self._scheme(weight.shape[1]), self.group_size)
        if not np.array_equal(clipped, weight):
            view.set_weight(clipped)
            report.changed += 1

    def _scheme(self, width: int) -> Scheme:
        """The range of a group is that of its elements: the search changes those."""
        grain = per_group(1, self.group_size) if 0 < self.group_size < width else per_channel(0)
        return replace(Scheme(self.weight, grain), symmetric=self.symmetric)


def _factors(loud: np.ndarray, alpha: float) -> np.ndarray:
    """``loud^alpha``, the largest times the smallest being 1; 1 for channels that are always 0."""
    raised = np.where(loud > 0, np.maximum(loud.astype(np.float64) ** alpha, SMALLEST), 1.0)
    alive = raised[loud > 0] if (loud > 0).any() else np.ones(1)
    return np.where(loud > 0, raised / np.sqrt(alive.max() * alive.min()), 1.0)


def output_error(weight: np.ndarray, rows: np.ndarray, scheme: Scheme, by_channel: np.ndarray) -> float:
    """Squared error of ``rows`` [T, in] times the weight [out, in], rounded as ``Q(W s) / s``."""
    held = rounded_weight((weight * by_channel).astype(np.float32), scheme) / by_channel
    return float(np.square(rows.astype(np.float64) @ (held - weight).T).sum())


def clip(weight: np.ndarray, rows: np.ndarray, scheme: Scheme, group: int) -> np.ndarray:
    """The weight [out, in] with each group of a row cut at the share of its largest magnitude that costs least.

    Args:
        weight: Of the layer.
        rows: [T, in]: what it reads.
        scheme: How it will be stored.
        group: Columns that share a scale; 0: all.
    """
    width = weight.shape[1]
    edges = [*range(0, width, group or width), width]
    best, least = weight.copy(), np.full((len(weight), len(edges) - 1), np.inf)
    for share in SHRUNK:
        cut = weight.copy()
        for a, b in pairwise(edges):
            top = share * np.abs(weight[:, a:b]).max(1, keepdims=True)
            cut[:, a:b] = np.clip(weight[:, a:b], -top, top)
        lost = rounded_weight(cut, scheme) - weight
        for i, (a, b) in enumerate(pairwise(edges)):
            error = np.square(rows[:, a:b] @ lost[:, a:b].T, dtype=np.float64).sum(0)
            nearer = error < least[:, i]
            least[nearer, i] = error[nearer]
            best[nearer, a:b] = cut[nearer, a:b]
    return best


def _compared(model: ir.Model) -> set[ir.Node]:
    """The layers that queries and keys come from: a way back from each attention through whatever is no layer."""
    known = {v.node for v in layers(list(edit.nodes(model)))}
    found, pending = set[ir.Node](), list[ir.Value | None]()
    for graph in edit.graphs(model):
        pending += [node.inputs[slot] for h in find_heads(graph) for node, slot, _ in (h.query, h.key)]
    seen: set[ir.Value] = set()
    while pending:
        value = pending.pop()
        node = value.producer() if value is not None else None
        if value is None or node is None or value in seen:
            continue
        seen.add(value)
        if node in known:
            found.add(node)
        else:
            pending += [v for v in node.inputs if v is not None]
    return found
