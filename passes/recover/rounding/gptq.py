"""GPTQ: round the weights of each layer so that its outputs, not its weights, stay close."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.errors import BadRequest
from graphpress.passes.recover.rounding import grids
from graphpress.passes.recover.rounding.grids import QuantizedLayer
from graphpress.passes.recover.rounding.layer_by_layer import LayerByLayer
from graphpress.passes.recover.rounding.towards_teacher import TowardsTeacher
from graphpress.types import Numerics, Stage


@dataclass(frozen=True)
class Gptq(Pass):
    """Round the weights that stand before Q -> DQ, each rounding error made up for by the weights still to be rounded.

    To be put before ``fold-weights``. Layers are taken in the order of the graph; each sees the inputs that the already
    rounded model gives, in the body of a Loop or Scan those of all iterations. Weights are left float, on their grid. A
    layer whose outputs on held-out samples come out worse than with rounding to nearest keeps that. Source: Frantar et
    al., "GPTQ", 2022.

    Attributes:
        towards: What a layer is held to: ``layer``, what its float weight gives on the same inputs; ``teacher``, what
            the model before the first lossy pass gives there, so that errors of earlier layers are made up for too,
            and biases take what is off on average (GPTAQ, arXiv:2504.02692).
        samples: Of the calibration data; an eighth of them is held out.
        batch_size: Samples at a time.
        damping: Added to the diagonal of the Hessian, as a share of its mean.
        act_order: Settle the columns with the loudest inputs first. Scales of groups are then found beforehand; without
            it, from the weights as they stand when their group is reached.
        observer: How scales are found: ``keep`` those of the graph; ``minmax`` or ``mse`` of the weights; ``loss``: mse
            with each weight's error counted by what it costs the output; ``best``: so by squares and by fourth powers
            of errors, and for each output channel what then loses less on held-out samples. None: ``loss``, below 4
            bits ``best``.
        block: Columns between two updates of all later ones; at least the group size.
        largest: Inputs of a layer (times the kernel's elements) up to which it is taken. Memory grows with their square
            (float32 above 4,096; 8,192: some 1 GB beside the weights), time with their cube.
        device: Where columns are settled, as torch calls it, such as ``cuda``; None: numpy, on the CPU.
        state: A file that keeps what is done: an interrupted run, made again, goes on to the identical result.
    """

    towards: Literal["layer", "teacher"] = "layer"
    samples: int = 128
    batch_size: int = 8
    damping: float = 0.01
    act_order: bool = True
    observer: Literal["keep", "minmax", "mse", "loss", "best"] | None = None
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
        if self.towards == "teacher":
            ctx.need("teacher", "gptq", "is to be held to the float model", "set towards=layer")
        self._check()
        layers = [q for q in grids.quantized_layers(model, report) if self._takes(q, report)]
        if layers:
            kind = LayerByLayer if self.towards == "layer" else TowardsTeacher
            kind(self, model, ctx, report, layers, data.bind(model), run).run()

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
