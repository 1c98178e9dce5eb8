"""Compute in float32 what a model computes in half precision, its inputs and outputs apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import half, widening
from graphpress.types import Numerics


@dataclass(frozen=True)
class WidenHalf(Pass):
    """Make float32 of everything in float16 and bfloat16, so that no other pass has to know of half precision.

    Inputs and outputs keep their types behind a Cast. What is left of the weights as floats in the end is stored in
    half precision again when the model is lowered. ``gp.compile`` puts the pass in front where a model has halves.
    """

    name: ClassVar[str] = "widen-half"
    numerics: ClassVar[Numerics] = Numerics.CLOSE

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        if not half.found(model):
            return
        done = widening.widen(model)
        if done.refused:
            report.skip("model", done.refused)
            return
        report.changed = done.weights.total() + done.values.total() + len(done.ends)
        report.metrics["half"] = str(done)
