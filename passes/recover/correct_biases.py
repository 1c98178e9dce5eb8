"""``correct-biases``: biases that take back what rounded weights add to the mean of a layer's outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.errors import BadRequest
from graphpress.keys import CORRECTED
from graphpress.observe.moments import Rows
from graphpress.passes.recover.expected import Expected, expected
from graphpress.passes.recover.rounding import grids
from graphpress.passes.recover.rounding.grids import QuantizedLayer
from graphpress.passes.recover.rounding.waves import Prefix, waves
from graphpress.runner import Arrays
from graphpress.types import Numerics, Stage


@dataclass(frozen=True)
class CorrectBiases(Pass):
    """Bias correction (Nagel et al., Data-free quantization, arXiv:1906.04721, section 4.2): ``c - (W_q - W) E[x]``.

    To be put behind what rounds weights and before the passes that fold. W_q is what stands in the graph, W the float
    weight before it, x what the layer reads there: layers are taken in the order of the graph, so that of data each
    sees what the layers before it give, quantized and corrected. The squared error of a layer falls by the square of
    the mean error. A layer without a bias gets one. Once corrected, a layer is left alone.

    Without data, E[x] follows from what BatchNormalization has learned, a Relu or Clip behind it being a cut of a
    normal distribution; where something else makes the input of a layer, that is a Skip.

    Attributes:
        means: Where E[x] is from: ``data``, the calibration data; ``batchnorm``, learned statistics; ``auto``: data
            where there are any.
        samples: Of the calibration data.
        batch_size: Samples at a time.
    """

    means: Literal["auto", "data", "batchnorm"] = "auto"
    samples: int = 128
    batch_size: int = 8

    name = "correct-biases"
    numerics = Numerics.LOSSY
    needs = (Stage.QDQ,)

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        """Rewrite the biases of ``model``.

        Raises:
            BadRequest: Data are asked for, and there are none or nothing to run them on; an option out of range.
            CalibrationError: The data does not fit the model.
        """
        for option in ("samples", "batch_size"):
            if getattr(self, option) < 1:
                raise BadRequest("must be at least 1", where=f"correct-biases: option {option!r}")
        learned = self.means == "batchnorm" or (self.means == "auto" and ctx.data is None)
        if not learned:
            instead = "set means=batchnorm"
            ctx.need("data", "correct-biases", "needs the means of inputs", instead)
            ctx.need("run", "correct-biases", instead=instead)
        layers = [q for q in grids.quantized_layers(model, report) if _open(q, report)]
        job = _Job(model, ctx, report, layers)
        if layers and learned:
            job.by_statistics()
        elif layers:
            job.by_data(self.samples, self.batch_size)


def _open(q: QuantizedLayer, report: PassReport) -> bool:
    done = CORRECTED in q.layer.node.metadata_props
    if done:
        report.skip(q.layer.node, "its bias was corrected before")
    return not done


@dataclass
class _Job:
    """Layers corrected one after another."""

    model: ir.Model
    ctx: Context
    report: PassReport
    layers: Sequence[QuantizedLayer]

    def by_statistics(self) -> None:
        graphs = dict.fromkeys(q.layer.node.graph for q in self.layers)
        known = {v: e for g in graphs if isinstance(g, ir.Graph) for v, e in expected(g).items()}
        for q in self.layers:
            mean = _row(q, known.get(q.layer.input))
            if mean is None:
                self.report.skip(q.layer.node, "no statistics say what it reads on average")
            else:
                self.correct(q, mean)

    def by_data(self, samples: int, batch_size: int) -> None:
        assert self.ctx.data is not None and self.ctx.run is not None
        data = self.ctx.data.bind(self.model).take(samples, self.ctx.seed)
        prefix = Prefix.of(self.model, self.ctx.run, data.batches(batch_size))
        plan = waves(self.model.graph, [q.layer.node for q in self.layers])
        for wave in self.ctx.progress(plan, "correct-biases", len(plan)):
            prefix.advance(wave.live)
            self.wave([self.layers[i] for i in wave.nodes], prefix)

    def wave(self, layers: Sequence[QuantizedLayer], prefix: Prefix) -> None:
        """Correct layers that do not depend on one another."""
        rows = {q.name: Rows.of(q.layer.node) for q in layers}
        values = prefix.values(list(dict.fromkeys(r.value for r in rows.values())))
        means = {r: _Mean() for r in rows.values() if r.value not in values.unobserved}
        for batch in values.batches:
            for r, mean in means.items():
                mean.update(r, batch)
        for q in layers:
            r = rows[q.name]
            if r in means and means[r].count:
                self.correct(q, means[r].total / means[r].count)
            else:
                why = values.unobserved.get(r.value, "its body never ran on the samples")
                self.report.skip(q.layer.node, f"its input cannot be seen: {why}")

    def correct(self, q: QuantizedLayer, mean: np.ndarray) -> None:
        """``mean``: [groups, K], of the rows that the weight is multiplied with."""
        difference = (q.rounded(q.params()).astype(np.float64) - q.weight()).reshape(len(mean), -1, mean.shape[1])
        shift = np.einsum("gok,gk->go", difference, mean).ravel()
        bias = q.layer.bias()
        if not shift.any() or not np.isfinite(shift).all():
            self.report.skip(q.layer.node, "rounding its weight moves no mean")
            return
        q.layer.node.metadata_props[CORRECTED] = "bias"
        q.layer.set_bias(-shift if bias is None else bias - shift)
        self.report.changed += 1


@dataclass
class _Mean:
    """A running sum of the rows that a layer reads.

    Attributes:
        total: [groups, K].
        count: Rows.
    """

    total: np.ndarray = field(default_factory=lambda: np.zeros(()))
    count: int = 0

    def update(self, rows: Rows, values: Arrays) -> None:
        """Add a batch; elements that are not finite count as 0."""
        x = np.nan_to_num(values[rows.value].astype(np.float64), posinf=0.0, neginf=0.0)
        if not x.size:
            return  # of a body that did not run
        if rows.window is None:
            x = x.reshape(-1, x.shape[-1])
            self.total, self.count = self.total + x.sum(0)[None], self.count + len(x)
        else:  # a sum over samples goes through a window as they do
            seen = rows(x.sum(0)[None])
            self.total, self.count = self.total + seen.sum(1), self.count + len(x) * seen.shape[1]


def _row(q: QuantizedLayer, told: Expected | None) -> np.ndarray | None:
    """[groups, K]: the mean of the rows that a layer reads; the border counts where the size of the input is known."""
    value, groups, node = q.layer.input, q.layer.groups, q.layer.node
    if told is None or len(told.mean) != q.layer.shape[1] * groups:
        return None
    if node.op_type != "Conv":
        return told.mean[None] if value.shape is not None and len(value.shape) == 2 else None
    size = [d for d in value.shape[2:] if isinstance(d, int)] if value.shape is not None else []
    if len(size) != len(q.layer.shape) - 2:
        return np.repeat(told.mean, math.prod(q.layer.shape[2:])).reshape(groups, -1)
    window = Rows.of(node).window
    assert window is not None
    return window.rows(np.broadcast_to(told.mean.reshape(1, -1, *[1] * len(size)), (1, len(told.mean), *size))).mean(1)
