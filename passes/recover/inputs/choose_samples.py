"""Calibrate on few samples that stand for all that there are."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Exhibit, Pass, PassReport
from graphpress.errors import BadRequest
from graphpress.observe.data import CalibrationData
from graphpress.observe.inner import stream
from graphpress.passes.recover.inputs.coverage import covering, shares, unit
from graphpress.passes.structure.layers.linear import Linear, linear
from graphpress.types import Numerics, Stage

_WHERE = "pass 'choose-samples'"
_LARGEST = 1 << 28  # floats of all embeddings
_SEEN = 2048  # samples whose likeness is told


@dataclass(frozen=True)
class ChooseSamples(Pass):
    """Keep the calibration samples that cover what was given (Dataset Quantization, arXiv:2308.10524, section 3.2).

    Samples are sorted into bins by how like they are to the rest, and the same share is drawn from every bin: diverse
    where a random draw of few has mostly what is frequent. With labels it is done for each class apart. The passes
    after it calibrate on what is kept; the graph stays as it is, and what the gate sees too.

    Attributes:
        samples: How many are kept.
        bins: How many of equal size (of each class).
        trade: Worth of being like all that is left, against being unlike the bin.
        embedding: What samples are compared by: ``features``, what the last linear layer reads; ``gradients``, of that
            layer's weights for the likeliest class (or the label), as in the paper; ``auto``: those where it gives
            scores of at most 1,000 classes, one vector a sample.
        at: Name of the value to compare instead; with four axes averaged over the last two, else over all but the first
            and the last.
    """

    name: ClassVar[str] = "choose-samples"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    needs: ClassVar[tuple[Stage, ...]] = (Stage.FLOAT,)
    samples: int = 64
    bins: int = 10
    trade: float = 1.0
    embedding: Literal["auto", "gradients", "features"] = "auto"
    at: str | None = None

    hands = True

    def __post_init__(self) -> None:
        for name in ("samples", "bins"):
            if getattr(self, name) < 1:
                raise BadRequest("must be at least 1", where=f"{_WHERE}, option {name!r}")
        if not self.trade > 0:
            raise BadRequest("must be above 0", where=f"{_WHERE}, option 'trade'")
        if self.at is not None and self.embedding == "gradients":
            raise BadRequest("gradients are of the last layer", where=f"{_WHERE}, option 'at'", fix="Give one of them.")

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        data = ctx.need("data", "choose-samples")
        if len(data) <= self.samples:
            report.skip("calibration data", f"there are {len(data)} samples, and all of them are kept")
            return
        labels = _classes(data, len(data))
        rows = unit(self._embeddings(model, ctx, data, labels))
        groups = [np.arange(len(data))] if labels is None else [np.flatnonzero(labels == c) for c in np.unique(labels)]
        rng = np.random.default_rng(ctx.seed)
        kept = [
            [group[b] for b in covering(rows[group], share, self.bins, self.trade, rng)]
            for group, share in zip(groups, shares(self.samples, map(len, groups)), strict=True)
        ]
        chosen = np.concatenate([b for group in kept for b in group])
        report.handed["data"] = data.pick(chosen)
        report.metrics = {
            "samples": len(chosen), "of": len(data), "bins": self.bins, "classes": len(groups),
            "mean similarity": round(_likeness(rows[np.sort(chosen)]), 4), "of all": round(_likeness(rows), 4),
        }  # fmt: skip
        report.exhibits.append(_provenance(kept))

    def _embeddings(
        self, model: ir.Model, ctx: Context, data: CalibrationData, labels: np.ndarray | None
    ) -> np.ndarray:
        """[samples, features]."""
        last = None if self.at is not None else _last(model)
        if self.at is None and last is None:
            raise BadRequest("no output comes from a linear layer", where=_WHERE, fix="Say which value: option at.")
        wide = self.embedding != "features" and last is not None and _scores(last)
        if self.embedding == "gradients" and not wide:
            raise BadRequest("the last layer does not give one vector of class scores a sample", where=_WHERE,
                             fix="Set embedding: features.")  # fmt: skip
        names = [last.input.name or "" if last is not None else self.at or ""]
        names += [last.output.name or ""] if last is not None and wide else []
        seen = stream(model, names, data, ctx.need("run", "choose-samples"), progress=ctx.progress)
        for name, why in seen.unobserved.items():
            raise BadRequest(f"it cannot be seen: {why}", where=f"{_WHERE}, value {name!r}", fix="Choose another: at.")
        found, size = [], 0
        for batch in seen.batches:
            read = _pooled(batch[names[0]], last)
            now = None if labels is None else labels[size : size + len(read)]
            found.append(_gradients(read, batch[names[1]], now) if wide else read)
            size += len(read)
            if size * found[0][0].size > _LARGEST:
                raise BadRequest("the embeddings take over 1 GiB", where=_WHERE, fix="Set embedding: features.")
        if size != len(data):
            raise BadRequest(f"{size} rows for {len(data)} samples: a value without an axis of samples", where=_WHERE)
        return np.concatenate(found)


def _classes(data: CalibrationData, samples: int) -> np.ndarray | None:
    """[samples]: labels that are whole numbers, one a sample; else None."""
    labels = data.labels
    return labels if labels is not None and labels.dtype.kind in "iu" and labels.shape == (samples,) else None


def _last(model: ir.Model) -> Linear | None:
    """The linear layer nearest to an output, the first output first."""
    waiting, known = deque(model.graph.outputs), set[ir.Value]()
    while waiting:
        node = waiting.popleft().producer()
        if node is None or node.graph is not model.graph:
            continue
        view = linear(node)
        if isinstance(view, Linear):
            return view
        fresh = [v for v in node.inputs if v is not None and v not in known]
        known.update(fresh)
        waiting.extend(fresh)
    return None


def _scores(last: Linear) -> bool:
    """Whether it may give scores of classes, one vector a sample."""
    shape = last.output.shape
    return last.node.op_type != "Conv" and shape is not None and len(shape) == 2 and 2 <= last.shape[0] <= 1000


def _pooled(value: np.ndarray, last: Linear | None) -> np.ndarray:
    """[samples, features]."""
    if value.ndim < 2:
        raise BadRequest(f"it has {value.ndim} axes", where=f"{_WHERE}, option 'at'", fix="Name one with features.")
    images = last.node.op_type == "Conv" if last is not None else value.ndim == 4
    axes = tuple(range(2, value.ndim)) if images else tuple(range(1, value.ndim - 1))
    return np.asarray(value.mean(axis=axes), np.float32)


def _gradients(read: np.ndarray, scores: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """[samples, classes * features]: of the cross entropy with the likeliest class, or the label."""
    shifted = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    slope = shifted / shifted.sum(axis=1, keepdims=True)
    fits = labels is not None and bool(((labels >= 0) & (labels < scores.shape[1])).all())
    right = labels if fits and labels is not None else scores.argmax(axis=1)
    slope[np.arange(len(slope)), right] -= 1
    return (slope[:, :, None] * read[:, None, :]).reshape(len(read), -1).astype(np.float32)


def _likeness(rows: np.ndarray) -> float:
    """Mean similarity of two different samples, of some of them evenly spread."""
    some = rows[:: -(-len(rows) // _SEEN)]
    total, n = some.sum(axis=0), len(some)
    own = float((some * some).sum())
    return 0.5 + 0.5 * (float(total @ total) - own) / max(n * (n - 1), 1)


def _provenance(kept: list[list[np.ndarray]]) -> Exhibit:
    """A row a bin: which samples it gave, by their positions in the calibration data."""
    rows = [
        [str(c), str(b), ", ".join(map(str, np.sort(part).tolist()))]
        for c, group in enumerate(kept) for b, part in enumerate(group) if len(part)
    ]  # fmt: skip
    return Exhibit("table", "samples kept, by bin", {"columns": ["class", "bin", "samples"], "rows": rows})
