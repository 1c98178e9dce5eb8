"""GPTQ: round the weights of each layer so that its outputs, not its weights, stay close."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.errors import BadRequest
from graphpress.observe.data import CalibrationData
from graphpress.observe.moments import Moments, Rows, Sum, add_up
from graphpress.passes.recover.rounding import grids
from graphpress.passes.recover.rounding.columns import Solved, round_layer
from graphpress.passes.recover.rounding.gptq_state import State
from graphpress.passes.recover.rounding.grids import QuantizedLayer
from graphpress.passes.recover.rounding.waves import Prefix, waves
from graphpress.runner import Executor
from graphpress.types import Numerics, Stage


@dataclass(frozen=True)
class Gptq(Pass):
    """Round the weights that stand before Q -> DQ, each rounding error made up for by the weights still to be rounded.

    To be put before ``fold-weights``. Layers are taken in the order of the graph; each sees the inputs that the already
    rounded model gives, in the body of a Loop or Scan those of all iterations. Weights are left float, on their grid. A
    layer whose outputs on held-out samples come out worse than with rounding to nearest keeps that. Source: Frantar et
    al., "GPTQ", 2022.

    Attributes:
        samples: Of the calibration data; an eighth of them is held out.
        batch_size: Samples at a time.
        damping: Added to the diagonal of the Hessian, as a share of its mean.
        act_order: Settle the columns with the loudest inputs first. Scales of groups are then found beforehand; without
            it, from the weights as they stand when their group is reached.
        observer: How scales are found: ``keep`` those of the graph; ``minmax`` or ``mse`` of the weights; ``loss``: mse
            with each weight's error counted by what it costs the output.
        block: Columns between two updates of all later ones; at least the group size.
        largest: Inputs of a layer (times the kernel's elements) up to which it is taken. Memory grows with their square
            (float32 above 4,096; 8,192: some 1 GB beside the weights), time with their cube.
        device: Where columns are settled, as torch calls it, such as ``cuda``; None: numpy, on the CPU.
        state: A file that keeps what is done: an interrupted run, made again, goes on to the identical result.
    """

    samples: int = 128
    batch_size: int = 8
    damping: float = 0.01
    act_order: bool = True
    observer: Literal["keep", "minmax", "mse", "loss"] = "loss"
    block: int = 128
    largest: int = 8192
    device: str | None = None
    state: str | None = None

    name = "gptq"
    numerics = Numerics.LOSSY
    needs = (Stage.QDQ,)

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        """Rewrite the weights of ``model``.

        Raises:
            BadRequest: There is no data or nothing to run it on; an option out of range.
            CalibrationError: The data does not fit the model.
        """
        data = ctx.need("data", "gptq", "needs the inputs of layers", "leave gptq out of the recipe")
        run = ctx.need("run", "gptq")
        self._check()
        layers = [q for q in grids.quantized_layers(model, report) if self._takes(q, report)]
        if layers:
            LayerByLayer(self, model, ctx, report, layers, data.bind(model), run).run()

    def _takes(self, q: QuantizedLayer, report: PassReport) -> bool:
        width = math.prod(q.layer.shape[1:])
        if width <= self.largest:
            return True
        report.skip(q.layer.node, f"it has {width} inputs, over the {self.largest} of option 'largest'")
        return False

    def _check(self) -> None:
        for option, least in (("samples", 1), ("batch_size", 1), ("block", 1)):
            if getattr(self, option) < least:
                raise BadRequest(f"must be at least {least}", where=f"gptq: option {option!r}")
        if not 0 <= self.damping <= 1:
            raise BadRequest("is a share of the mean, from 0 to 1", where="gptq: option 'damping'")


@dataclass
class LayerByLayer:
    """Layers settled in the order of the graph, each on what the model gives with those before it settled.

    Attributes:
        told: The metric that the mean over layers of what ``settle`` gives is told as.
        kept: Why a layer was left as it was, where ``settle`` gives 1.
        solved: Of the value that the last layer of a wave read: the next may read it too.
    """

    told: ClassVar[str] = "error against rounding to nearest"
    kept: ClassVar[str] = "rounding to nearest is no worse on held-out samples, and was kept"
    options: Any  # of a pass with samples, batch_size and state
    model: ir.Model
    ctx: Context
    report: PassReport
    layers: Sequence[QuantizedLayer]
    data: CalibrationData
    execute: Executor
    gains: list[float] = field(default_factory=list)
    solved: Solved | None = None

    def run(self) -> None:
        options = self.options
        data = self.data.take(options.samples, self.ctx.seed)
        fit, held = split(data, self.ctx.seed)
        batches = list(fit.batches(options.batch_size))
        self.fitted = len(batches)
        prefix = Prefix.of(self.model, self.execute, [*batches, *held.batches(options.batch_size)])
        state = State.of(options.state, options.options(), self.model, data, self.ctx)
        plan = waves(self.model.graph, [q.layer.node for q in self.layers])
        try:
            for wave in self.ctx.progress(plan, "gptq", len(plan)):
                prefix.advance(wave.live)
                self.wave([self.layers[i] for i in wave.nodes], prefix, state)
                state.save()
        finally:
            state.save(now=True)
        if self.gains:
            self.report.metrics[self.told] = round(float(np.mean(self.gains)), 4)

    def wave(self, layers: Sequence[QuantizedLayer], prefix: Prefix, state: State) -> None:
        """Settle layers that do not depend on one another."""
        todo = [q for q in layers if not state.restore(q)]
        for q, found in zip(todo, self.moments(prefix, todo), strict=True):
            if isinstance(found, str):
                self.report.skip(q.layer.node, f"{found}: rounding to nearest was kept")
            else:
                state.keep(q, self.settle(q, *found))
        self.solved = None
        self.note([q for q in layers if q.name in state.gains], state)

    def moments(self, prefix: Prefix, layers: Sequence[QuantizedLayer]) -> Iterator[tuple[Moments, Moments] | str]:
        """Of what each layer reads: over the samples to fit to, over those held out; or why it cannot be seen."""
        rows = [Rows.of(q.layer.node) for q in layers]
        values = prefix.values(list(dict.fromkeys(r.value for r in rows)))
        parts = [{r: Sum() for r in rows if r.value not in values.unobserved} for _ in range(2)]
        for part, batches in zip(parts, (islice(values.batches, self.fitted), values.batches), strict=True):
            add_up(part, batches)
        for r in rows:
            if r.value in values.unobserved:
                yield f"its input cannot be seen: {values.unobserved[r.value]}"
                continue
            seen, unseen = (part[r] for part in parts)
            if seen.count:
                yield seen.moments(), (unseen if unseen.count else seen).moments()
            else:
                yield "its body never ran on the samples"

    def settle(self, q: QuantizedLayer, seen: Moments, unseen: Moments) -> float:
        """Round one layer; the error that is left, as a share of that of rounding to nearest (1 where that is kept)."""
        options, weight = self.options, q.weight()
        nearest = q.rounded(q.params())
        order = {"act_order": options.act_order, "on": options.device}
        if self.solved is None or self.solved.moments is not seen:
            self.solved = Solved.of(seen, damping=options.damping, **order)
        rounded, params = round_layer(q, self.solved, block=options.block, observer=options.observer, **order)
        before, after = unseen.error(nearest - weight), unseen.error(rounded - weight)
        if not after <= before:
            q.write(nearest, q.params())
            return 1.0
        q.write(rounded, params)
        return after / before if before else 1.0

    def note(self, layers: Sequence[QuantizedLayer], state: State) -> None:
        for q in layers:
            gain = state.gain(q)
            self.gains.append(gain)
            self.report.changed += gain < 1.0
            if gain >= 1.0:
                self.report.skip(q.layer.node, self.kept)


def split(data: CalibrationData, seed: int) -> tuple[CalibrationData, CalibrationData]:
    """(to fit to, an eighth held out); the same twice where there are too few."""
    return data.hold_back(len(data) // 8, seed)
