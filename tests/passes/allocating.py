"""What the tests of allocation share: small networks, contexts that run them, their parts."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from graphpress.backends import fx, ort, reference
from graphpress.context import Context
from graphpress.job import engine
from graphpress.observe.data import CalibrationData
from graphpress.passes.allocate.parts import Parts
from graphpress.passes.allocate.space import explore
from graphpress.passes.allocate.ties import KINDS
from graphpress.passes.clean.infer_shapes import InferShapes
from graphpress.runner import Runner
from graphpress.target import Target
from tests import kit
from tests.passes import quantizing

FORMATS = ("w8a8", "w8a16", "w4a8", "w4a16-asym")
TARGET = Target.load("ort-cpu", "x86-64+vnni")

RESIDUAL = """
g (float[N, 3, 8, 8] x, float[16, 3, 3, 3] w0, float[16] b0, float[16, 16, 3, 3] w1, float[16] b1,
   float[16, 16, 3, 3] w2, float[16] b2, float[10, 16] wf, float[10] bf) => (float[N, 10] y)
<int64[2] axes = {2, 3}> {
    [stem] c0 = Conv<pads = [1, 1, 1, 1]>(x, w0, b0)
    [relu0] r0 = Relu(c0)
    [first] c1 = Conv<pads = [1, 1, 1, 1]>(r0, w1, b1)
    [relu1] r1 = Relu(c1)
    [second] c2 = Conv<pads = [1, 1, 1, 1]>(r1, w2, b2)
    [add] s = Add(c2, r0)
    [relu2] r2 = Relu(s)
    [pool] p = GlobalAveragePool(r2)
    [flat] f = Flatten(p)
    [head] y = Gemm<transB = 1>(f, wf, bf)
}
"""


def residual(seed: int = 0) -> ir.Model:
    """Three convolutions, two of them in a residual block, and a classifier."""
    shapes = {
        "w0": (16, 3, 3, 3), "b0": (16,), "w1": (16, 16, 3, 3), "b1": (16,), "w2": (16, 16, 3, 3), "b2": (16,),
        "wf": (10, 16), "bf": (10,),
    }  # fmt: skip
    weights = {n: quantizing.normal(*s, seed=seed + i) * 0.3 for i, (n, s) in enumerate(shapes.items())}
    return kit.apply(quantizing.model(RESIDUAL, weights), InferShapes())[0]


def images(count: int = 24, seed: int = 7) -> CalibrationData:
    x = np.random.default_rng(seed).normal(size=(count, 3, 8, 8)).astype(np.float32)
    return CalibrationData.from_arrays({"x": x})


def context(data: CalibrationData | None, *, deploy: bool = True, torch: bool = True) -> Context:
    """Everything a compilation gives, on the CPU."""
    runtime = engine.of(TARGET)

    def lowered(model: ir.Model) -> Runner:
        runner: Runner = runtime.execute(runtime.lower(model, TARGET), threads=1)
        return runner

    return Context(
        target=TARGET, data=data, run=partial(ort.execute, threads=1), oracle=reference.execute,
        differentiate=fx.build if torch else None, deploy=lowered if deploy else None,
    )  # fmt: skip


def parts(model: ir.Model, ctx: Context, formats: tuple[str, ...] = FORMATS, ties: tuple[str, ...] = KINDS) -> Parts:
    return Parts(explore(model, ctx.target, formats, (), ties), ctx)
