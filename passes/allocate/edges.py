"""Runs of the float model that keep what lies at the edges of the parts, as many samples at a time as memory holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.observe.inner import InnerValues
from graphpress.observe.shaped import shaped

BUDGET = 512 << 20  # bytes of values kept at a time
_MOST = 32  # samples in a run
_ROWS, _LEAST = 2048, 4  # a sample that is many tokens counts as many: this many rows of outputs, from some samples

Values = dict[str, np.ndarray]


@dataclass
class Probe:
    """A model on a few samples of the calibration data.

    Attributes:
        model: Float; not changed.
        ctx: Has the data and something to run the model on.
        samples: How many are drawn at most (by the context's seed); fewer of those that are long texts.
    """

    model: ir.Model
    ctx: Context
    samples: int

    def __post_init__(self) -> None:
        why = "sensitivity is measured on calibration data, and there is none"
        drawn = self.ctx.need("data", "allocate", why, "let `zeroq` make some")
        self.run = self.ctx.need("run", "allocate")
        data = drawn.take(self.samples, self.ctx.seed).bind(self.model)
        exact = data.binding.exact if data.binding else None
        feeds = next(data.batches(exact or 1))
        rows = max(
            (a.size // a.shape[-1] for a in self.run(self.model)(feeds).values() if a.ndim > 1 and a.size), default=1
        )
        enough = max(_LEAST, _ROWS * (exact or 1) // max(rows, 1))
        self.data = data if len(data) <= enough else drawn.take(enough, self.ctx.seed).bind(self.model)

    def chunks(self, names: Sequence[str]) -> Iterator[Values]:
        """The named values, and always the inputs of the graph, over all samples."""
        values = self._values(names)
        exact = self.data.binding.exact if self.data.binding else None
        each = values.bytes(next(self.data.batches(exact or 1))) / (exact or 1)
        size = exact or max(1, min(_MOST, int(BUDGET // max(each, 1))))
        for feeds in self.data.batches(size):
            yield values(feeds) | feeds

    def one(self, names: Sequence[str]) -> Values:
        """The named values on ``sample``."""
        feeds = self.sample()
        return self._values(names)(feeds) | feeds

    def sample(self) -> Values:
        """What latency is measured with: the smallest batch, in the shapes of the target's phase where it has one."""
        return dict(shaped(self.model, next(self.data.batches(1)), self.ctx.target))

    def _values(self, names: Sequence[str]) -> InnerValues:
        return InnerValues.of(self.model, names, self.run, floats=False)
