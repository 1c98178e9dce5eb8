"""Calibration data for who has none: made from the statistics that BatchNormalization leaves in a model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import PassReport
from graphpress.passes.recover.engine.student import Excerpt, build
from graphpress.passes.recover.inputs.distilled_inputs import Distilled, Pixels, Search, StatisticsSource, distil
from graphpress.passes.recover.inputs.learned import Learned
from graphpress.passes.recover.inputs.synthesis import Synthesis


@dataclass(frozen=True)
class ZeroQ(Synthesis):
    """Make calibration data from BatchNormalization (ZeroQ, arXiv:2001.00281, section 3.1); the graph stays as it is.

    Noise is moved by Adam until the values that BatchNormalization reads, or read before it was folded, have the mean
    and the standard deviation that training saw. What ``Synthesis`` says holds: data that the user gives are used
    instead, and the gate judges on a part of what is made.

    Attributes:
        rate: Learning rate, in standard deviations of the input.
        statistics: ``batch`` compares those of a whole batch, as training took them; ``image`` those of every sample,
            as the paper's code does, which makes samples more alike than real ones are.
    """

    name: ClassVar[str] = "zeroq"
    statistics: Literal["batch", "image"] = "batch"

    def distil(
        self, model: ir.Model, ctx: Context, report: PassReport, known: list[Learned],
        sources: list[StatisticsSource], batches: int,
    ) -> Distilled:  # fmt: skip
        module = build(model, ctx, Excerpt(list(dict.fromkeys(k.value for k in known))))
        search = Search(self.iterations, self.rate, self.patience, self.statistics == "image", self.seconds or math.inf)
        return distil(module, sources, known, search, batches, ctx.seed, ctx.progress, Pixels, self.where)
