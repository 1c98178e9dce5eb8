"""Queries, keys and values out of one layer: splitting it before quantization, as ViDiT-Q does, changes no bit of what
rounds rows apart. Scales are by output channel or by group of its inputs, and all three read the same activations."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.recover.rounding.gptq import Gptq
from graphpress.pipeline import Pipeline
from tests import kit
from tests.passes.quantizing import context, model, normal

FUSED = "g (float[N, 64] x, float[64, 96] w) => (float[N, 96] y) { y = MatMul(x, w) }"
SPLIT = """
g (float[N, 64] x, float[64, 32] a, float[64, 32] b, float[64, 32] c) => (float[N, 96] y) {
    q = MatMul(x, a)
    k = MatMul(x, b)
    v = MatMul(x, c)
    y = Concat <axis = 1> (q, k, v)
}"""
X = normal(40, 64, seed=5)
WEIGHT = normal(64, 96, seed=1) * np.repeat([1.0, 0.2, 5.0], 32)  # of one part louder than the others


def both() -> list[ir.Model]:
    parts = dict(zip("abc", np.split(WEIGHT, 3, axis=1), strict=True))
    made = [model(FUSED, {"w": WEIGHT}), model(SPLIT, parts)]
    for one in made:
        ShapeInferencePass()(one)
    return made


@pytest.mark.parametrize("by", ["per_channel", "per_group"])
@pytest.mark.parametrize("weight", ["int8", "int4"])
@pytest.mark.parametrize("gptq", [False, True], ids=["nearest", "gptq"])
def test_a_split_layer_is_rounded_as_a_fused_one(by: str, weight: str, gptq: bool) -> None:
    step = Quantize(
        mode="dynamic", weight=weight, weight_granularity=by, group_size=32, weight_observer="mse",
        activation_granularity="per_token",
    )  # fmt: skip
    passes = [step, Gptq()] if gptq else [step]
    fused, split = (kit.run(Pipeline(passes).run(m, context({"x": X}, None))[0], {"x": X})["y"] for m in both())
    np.testing.assert_allclose(fused, split, rtol=0, atol=2e-6 * np.abs(split).max())  # sums in another order
    assert np.abs(fused - X @ WEIGHT).max() > 1e-3 * np.abs(split).max()


def test_one_scale_for_a_tensor_is_another_matter() -> None:
    step = Quantize(mode="weight", weight="int4", weight_granularity="per_tensor", kernels="preferred")
    errors = [
        np.square(kit.run(Pipeline([step]).run(m, context({"x": X}, None))[0], {"x": X})["y"] - X @ WEIGHT)[
            :, 32:64
        ].sum()
        for m in both()
    ]
    assert errors[1] * 10 < errors[0]
