"""What all passes share that make calibration data from the statistics that BatchNormalization leaves in a model."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.errors import BadRequest
from graphpress.graph import half
from graphpress.observe.data import CalibrationData
from graphpress.passes.recover.inputs.distilled_inputs import Distilled, StatisticsSource
from graphpress.passes.recover.inputs.learned import Learned, learned
from graphpress.types import Numerics, Stage

_HALF_RANGE = 2.0  # standard deviations between the middle of a given range and its ends


@dataclass(frozen=True)
class Synthesis(Pass):
    """Makes inputs; the graph stays as it is. A subclass says how.

    The passes after it calibrate on what comes out, and the gate judges on a part of it: a check on noise of the right
    kind, not on the user's inputs. It stands before the first pass that changes what the model computes. Data that the
    user gives are used instead.

    Inputs are taken to be normalised images, mean 0 and standard deviation 1 in each channel. A model that takes others
    is told by ``mean`` and ``std``, or by ``range`` alone: [0, 255] means mean 127.5, standard deviation 63.75, and no
    value outside.

    Attributes:
        samples: How many are made; more where a model fixes its batch size and this is no multiple of it.
        batch: How many are looked for together; memory grows with it.
        iterations: Steps for each batch.
        rate: Learning rate of what is trained.
        patience: Steps without a better loss after which the rate falls to a tenth.
        mean: Of the inputs, one for all channels or one for each.
        std: Likewise.
        reach: How many standard deviations from the mean a value may lie, where there is no ``range``. Images of 8 bits
            span 4.4 to 5 of them, as they are usually normalised; unbounded noise grows tails that no image has, and
            these widen the scales. For inputs with heavy tails, set it higher.
        range: Smallest and largest value of an input.
        shape: Of one sample, where the model leaves it open: [3, 224, 224].
        seconds: Stop after this long, wherever the search is: the result then depends on the machine.
        always: Also where the user gave data, which then serve the gate only.
    """

    numerics: ClassVar[Numerics] = Numerics.EXACT
    needs: ClassVar[tuple[Stage, ...]] = (Stage.FLOAT,)
    samples: int = 32
    batch: int = 32
    iterations: int = 500
    rate: float = 0.5
    patience: int = 100
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    reach: float = 2.4
    range: tuple[float, float] | None = None
    shape: tuple[int, ...] = ()
    seconds: float | None = None
    always: bool = False

    hands = True

    def __post_init__(self) -> None:
        for name in ("samples", "batch", "iterations"):
            if getattr(self, name) < 1:
                raise BadRequest("must be at least 1", where=f"{self.where}, option {name!r}")
        for name in ("rate", "reach", "seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise BadRequest("must be above 0", where=f"{self.where}, option {name!r}")
        if any(not s > 0 for s in self.std):
            raise BadRequest("must be above 0", where=f"{self.where}, option 'std'")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise BadRequest("the smallest value must be below the largest", where=f"{self.where}, option 'range'")

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        if ctx.data is not None and not self.always:
            report.skip("calibration data", "data was given and is used (option always makes inputs all the same)")
            return
        if ctx.teacher is not None:
            raise BadRequest(
                "a pass before it has changed what the model computes, and the statistics are of the model as it was",
                where=self.where, fix="Put it before the first lossy pass.",
            )  # fmt: skip
        known = learned(model, report)
        if not known:
            raise BadRequest(_NONE, where=self.where, fix=_FIX)
        size = self._size(model)
        sources = [self._source(v, size) for v in _inputs(model)]
        made = self.distil(model, ctx, report, known, sources, -(-self.samples // size))
        data = CalibrationData.from_arrays(made.arrays).bind(model)
        report.handed["data"] = data
        wanted = self.iterations * -(-len(data) // self._size(model))
        report.metrics |= {
            "samples": len(data), "values with statistics": len(known), "iterations": made.steps,
            "loss of noise": made.first, "loss": made.last,
        }  # fmt: skip
        if made.steps < wanted:
            report.metrics["stopped"] = f"after {made.steps} of {wanted} iterations: {self.seconds:g} s were over"

    @property
    def where(self) -> str:
        """Comes first in its messages."""
        return f"pass {self.name!r}"

    @abstractmethod
    def distil(
        self, model: ir.Model, ctx: Context, report: PassReport, known: list[Learned],
        sources: list[StatisticsSource], batches: int,
    ) -> Distilled:  # fmt: skip
        """Inputs for ``batches`` batches."""

    def _size(self, model: ir.Model) -> int:
        """Samples in a batch: what the model fixes, or what the options want."""
        fixed = {v.shape[0] for v in _inputs(model) if v.shape and isinstance(v.shape[0], int)}
        if len(fixed) > 1:
            raise BadRequest(f"the inputs fix different batch sizes: {sorted(fixed)}", where=self.where, fix=_FIX)
        return int(fixed.pop()) if fixed else min(self.batch, self.samples)

    def _source(self, value: ir.Value, size: int) -> StatisticsSource:
        where = f"{self.where}, input {value.name!r}"
        if value.dtype not in (ir.DataType.FLOAT, *half.HALVES):
            what = f"it holds {value.dtype.name if value.dtype else 'numbers of an unknown type'}, no floats"
            raise BadRequest(f"{what}, and no statistics say which", where=where, fix=_FIX)
        shape = (size, *self._sample_shape(value, where))
        low, high = self.range or (-_HALF_RANGE, _HALF_RANGE)
        middle, spread = (low + high) / 2, (high - low) / 2 / _HALF_RANGE
        mean, std = self._channels(self.mean, middle, shape, "mean"), self._channels(self.std, spread, shape, "std")
        ends = (low, high) if self.range else (mean - self.reach * std, mean + self.reach * std)
        return StatisticsSource(value.name or "", shape, mean, std, *(np.asarray(e, np.float32) for e in ends))

    def _sample_shape(self, value: ir.Value, where: str) -> tuple[int, ...]:
        if value.shape is None or len(value.shape) < 2:
            raise BadRequest("its shape is unknown or has no channels", where=where, fix=_FIX)
        dims = [d if isinstance(d, int) else None for d in value.shape][1:]
        given = self.shape or tuple(d or 0 for d in dims)
        if len(given) != len(dims) or any(d not in (None, g) for d, g in zip(dims, given, strict=True)):
            wants = [d or "?" for d in dims]
            raise BadRequest(f"a sample has shape {wants}, not {list(given)}", where=where, fix="Correct option shape.")
        if not all(given):
            raise BadRequest("the model leaves its shape open", where=where, fix="Set option shape, as [3, 224, 224].")
        return tuple(given)

    def _channels(self, given: tuple[float, ...], default: float, shape: tuple[int, ...], option: str) -> np.ndarray:
        """One number for each channel, or for all, as an array that broadcasts to ``shape``."""
        if len(given) not in (0, 1, shape[1]):
            what = f"has {len(given)} numbers, the input {shape[1]} channels"
            raise BadRequest(what, where=f"{self.where}, option {option!r}")
        return np.asarray(given or (default,), np.float32).reshape(-1, *[1] * (len(shape) - 2))


_FIX = "Give calibration data."
_NONE = (
    "the model holds no statistics of BatchNormalization to make inputs from: it has none, or an exporter has folded "
    "them away (torch.onnx.export(.., optimize=False) and graphpress.trace keep them)"
)


def _inputs(model: ir.Model) -> list[ir.Value]:
    return [v for v in model.graph.inputs if not v.is_initializer()]
