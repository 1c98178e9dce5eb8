"""What the tests of recovery share: small graphs, their quantized forms, and contexts that can train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from graphpress.backends import ort
from graphpress.context import Context
from graphpress.contracts import PassReport
from graphpress.graph import edit
from graphpress.observe.data import CalibrationData
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.recover.recover import Recover
from tests import kit
from tests.passes import quantizing
from tests.passes.quantizing import normal

CHAIN = """
agraph (float[N, 8] x, float[8, 16] w1, float[16] b1, float[16, 16] w2, float[16, 4] w3) => (float[N, 4] y)
{
  p = MatMul(x, w1)
  q = Add(p, b1)
  h = Relu(q)
  m = MatMul(h, w2)
  r = Add(h, m)
  y = MatMul(r, w3)
}
"""
WEIGHTS = {"w1": normal(8, 16), "b1": normal(16, seed=1), "w2": normal(16, 16, seed=2) / 4, "w3": normal(16, 4, seed=3)}
X = normal(64, 8, seed=9)


def chain() -> ir.Model:
    """Two layers, a residual branch, a head."""
    return quantizing.model(CHAIN, WEIGHTS)


def context(teacher: ir.Model | None, feeds: Mapping[str, np.ndarray] | None = None, **more: Any) -> Context:
    """Can train towards ``teacher`` on ``feeds``."""
    from graphpress.backends.fx.build import build

    data = CalibrationData.from_arrays(feeds if feeds is not None else {"x": X})
    return Context(data=data, run=ort.execute, differentiate=build, teacher=teacher, **more)


def int4(model: ir.Model, **options: Any) -> ir.Model:
    """Weights of 4 bits behind Q -> DQ."""
    return quantizing.quantize(model, Quantize(**{"mode": "weight", "weight": "int4"} | options))[0]


def recover(model: ir.Model, options: Recover, ctx: Context) -> tuple[ir.Model, PassReport]:
    """A trained copy of the model, and what the pass said of it."""
    after, (report,) = kit.apply(model, options, ctx=ctx)
    return after, report


def without_data(ctx: Context) -> Context:
    return replace(ctx, data=None)


def arrays(model: ir.Model) -> dict[str, np.ndarray]:
    """All constants by name."""
    found = {name: edit.constant(value) for name, value in model.graph.initializers.items()}
    return {name: array for name, array in found.items() if array is not None}


def error(model: ir.Model, teacher: ir.Model, feeds: Mapping[str, np.ndarray]) -> float:
    """Relative squared distance of the outputs, by ONNX Runtime without optimisation."""
    a, b = kit.run(model, feeds), kit.run(teacher, feeds)
    return float(np.mean([((a[n] - b[n]) ** 2).mean() / (b[n] ** 2).mean() for n in b]))
