"""Floats of 8 bits on ONNX Runtime's CPU provider: the same numbers whatever it optimises, and what the audit says."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import graphpress as gp
from graphpress.backends.ort import lower
from graphpress.target import Target
from tests import kit
from tests.backends.given import parse

TARGET = Target.load("ort-cpu", "x86-64+vnni")
RNG = np.random.default_rng(0)
TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[3, 64] x, float s, float z, float w, float ws, float t) => (float[3, 32] y) {
    r = Relu(x) c = QuantizeLinear(r, s, z) d = DequantizeLinear(c, s, z)
    f = DequantizeLinear<axis = 1>(w, ws) [m] h = MatMul(d, f)
    q = QuantizeLinear(h, t, z) y = DequantizeLinear(q, t, z)
}"""


@pytest.mark.parametrize("kind", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
@pytest.mark.parametrize(
    "level", [ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL]
)
def test_optimised_or_not_the_numbers_are_those_of_q_and_dq(kind: type, level: ort.GraphOptimizationLevel) -> None:
    """A Relu in front of such a Q is dropped by ONNX Runtime 1.32 where the two stand as they are."""
    model = parse(
        TEXT, s=np.float32(0.01).reshape(()), z=np.zeros((), kind), w=RNG.normal(size=(64, 32)).astype(kind),
        ws=RNG.uniform(0.01, 0.02, 32).astype(np.float32), t=np.float32(0.02).reshape(()),
    )  # fmt: skip
    x = RNG.normal(size=(3, 64)).astype(np.float32)
    x[0, 0] = 1e4  # beyond the largest of e4m3 in these scales
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 4
    lowered = lower(model, TARGET)
    data = ir.to_proto(lowered).SerializeToString()
    (y,) = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(["y"], {"x": x})
    expected = kit.run(model, {"x": x})["y"]
    assert (expected == y).mean() > 0.95 and np.allclose(y, expected, rtol=0.26)  # sums of floats, then one rounding
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(kit.ops(lowered))


def test_the_audit_says_that_they_are_rounded_and_computed_in_float() -> None:
    w = RNG.normal(size=(64, 512)).astype(np.float32)
    model = kit.parse("g (float[N, 64] x, float[64, 512] w) => (float[N, 512] y) { [m] y = MatMul(x, w) }")
    value = model.graph.inputs.pop()
    value.const_value = ir.tensor(w, name="w")
    model.graph.register_initializer(value)
    x = RNG.normal(size=(64, 64)).astype(np.float32)
    _, report = gp.compile(model, "w8a8-float8", {"x": x}, "ort-cpu", gate=False)
    (row,) = [s for s in report.sites if s.node == "m"]
    assert row.verdict == "weight-only"
    assert "activations are rounded to 8-bit floats, and computed in float" in row.reason
    assert report.size["file_after"] < 0.29 * report.size["file_before"]
