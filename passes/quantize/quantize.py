"""The pass that recipes name: plan by options, then apply."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.errors import BadRequest
from graphpress.observe.steps import StepRanges
from graphpress.passes.quantize.activation_ranges import unseen
from graphpress.passes.quantize.apply_plan import ApplyPlan
from graphpress.passes.quantize.plan import make_plan
from graphpress.passes.quantize.quantize_options import QuantizeOptions
from graphpress.passes.quantize.wide_range import find
from graphpress.types import Numerics, Stage


@dataclass(frozen=True)
class Quantize(QuantizeOptions, Pass):
    """Quantize weights and activations: static, dynamic or weight-only. The options are those of ``QuantizeOptions``.

    Attributes:
        batch_size: Samples at a time during calibration; None: what fits the memory budget.
        steps: Of a diffusion model: static activations have a scale for each range of this input, which the model
            gathers by it (TALSQ); ``t=0,0.5,1`` names the input and the bounds. Where samples have steps of their own,
            no integer kernel takes their scales; trace the model with one step for all.
    """

    batch_size: int | None = None
    steps: str | None = None

    name = "quantize"
    numerics = Numerics.LOSSY
    gives = Stage.QDQ

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None:
            StepRanges.read(self.steps)
            if "static" not in (self.mode, *self.fallback):
                raise BadRequest("is for static activations", where="quantize: option 'steps'", fix="Set mode: static.")

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        """Rewrite ``model``; what is left float is a Skip.

        Raises:
            BadRequest: A selector that matches nothing, or static mode without data.
            CalibrationError: The data does not fit the model.
        """
        wide, said = find(model, ctx) if self.mode != "weight" else ({}, [])
        static = "static" in (self.mode, *self.fallback)
        plan, skips = make_plan(model, ctx.target, self, unseen(model, ctx) if static else None, wide)
        report.skips += skips
        report.warnings += said
        ApplyPlan(plan, self.batch_size, self.steps).run(model, ctx, report)
