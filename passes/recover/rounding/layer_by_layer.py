"""Layers settled one after another, each on what the model gives with those before it settled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import PassReport
from graphpress.observe.data import CalibrationData
from graphpress.observe.moments import Rows, Sum, add_up
from graphpress.passes.recover.rounding.columns import Solved, round_layer
from graphpress.passes.recover.rounding.gptq_state import State
from graphpress.passes.recover.rounding.grids import QuantizedLayer
from graphpress.passes.recover.rounding.waves import Prefix, waves
from graphpress.runner import Arrays, Executor


@dataclass
class LayerByLayer:
    """Layers settled in the order of the graph, each on what the model gives with those before it settled.

    Attributes:
        told: The metric that the mean over layers of what ``settle`` gives is told as.
        kept: Why a layer was left as it was, where ``settle`` gives 1.
        biases: Those that ``settle`` gave to layers.
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
    biases: dict[str, np.ndarray] = field(default_factory=dict)
    solved: Solved | None = None

    def run(self) -> None:
        options = self.options
        data = self.data.take(options.samples, self.ctx.seed)
        fit, held = split(data, self.ctx.seed)
        batches = list(fit.batches(options.batch_size))
        self.fitted = len(batches)
        batches += held.batches(options.batch_size)
        self.begin(batches)
        prefix = Prefix.of(self.model, self.execute, batches)
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

    def begin(self, batches: Sequence[Arrays]) -> None:
        """Before the first layer, with all samples: those to fit to, then those held out."""

    def wave(self, layers: Sequence[QuantizedLayer], prefix: Prefix, state: State) -> None:
        """Settle layers that do not depend on one another."""
        todo = [q for q in layers if not state.restore(q)]
        for q, found in zip(todo, self.moments(prefix, todo), strict=True):
            if isinstance(found, str):
                self.report.skip(q.layer.node, f"{found}: rounding to nearest was kept")
            else:
                state.keep(q, self.settle(q, *found), self.biases.get(q.name))
        self.solved = None
        self.note([q for q in layers if q.name in state.gains], state)

    def moments(self, prefix: Prefix, layers: Sequence[QuantizedLayer]) -> Iterator[tuple[Any, Any] | str]:
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

    def settle(self, q: QuantizedLayer, seen: Any, unseen: Any) -> float:
        """Round one layer; the error that is left, as a share of that of rounding to nearest (1 where that is kept)."""
        options, weight = self.options, q.weight()
        nearest = q.rounded(q.params())
        order = {"act_order": options.act_order, "on": options.device}
        if self.solved is None or self.solved.moments is not seen:
            self.solved = Solved.of(seen, damping=options.damping, **order)
        rounded, params = round_layer(
            q, self.solved, block=options.block, observer=options.observer, judge=unseen, **order
        )
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
