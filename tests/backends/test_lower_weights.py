"""Low-bit weights between static codes: plain int8 on the integer kernel, or set apart from it, never rounded again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from graphpress.backends import reference
from graphpress.backends.ort import lower, session
from graphpress.graph import edit
from graphpress.target import Target
from tests import kit
from tests.backends.given import codes, parse

TARGET = Target.load("ort-cpu")


@pytest.mark.parametrize("kind", ["int8", "int4", "uint4", "uint8"])
@pytest.mark.parametrize(
    ("op", "weight", "scales"),
    [
        ("Conv", (8, 32, 1, 1), "axis = 1, block_size = 16"),
        ("Conv", (32, 32, 1, 1), "axis = 1"),
        ("Conv", (8, 32, 1, 1), "axis = 0"),
        ("ConvTranspose", (32, 8, 1, 1), "axis = 1"),
    ],
)
def test_weights_between_static_codes_are_never_rounded_again(
    op: str, weight: tuple[int, ...], scales: str, kind: str
) -> None:
    """ONNX Runtime fuses scales that QLinearConv cannot take, and rounds float weights with one scale for all."""
    rng = np.random.default_rng(0)
    shape = (8, 2, 1, 1) if "block" in scales else (weight[int(scales[-1])],)
    model = parse(
        f"""g (float[1, 32, 6, 6] x, float w, float ws, float wz, float s, float z) => (float[a, b, c, d] y) {{
            xq = QuantizeLinear(x, s, z)
            xd = DequantizeLinear(xq, s, z)
            f = DequantizeLinear<{scales}>(w, ws, wz)
            [op] a = {op}(xd, f)
            aq = QuantizeLinear(a, s, z)
            y = DequantizeLinear(aq, s, z)
        }}""",
        w=codes(rng, kind, weight),
        ws=(10.0 ** rng.uniform(-4, -2, shape)).astype(np.float32),
        wz=codes(rng, kind, shape),
        s=np.array(0.05, np.float32),
        z=np.array(128, np.uint8),
    )
    feeds = kit.random_feeds(model, 0)
    want, got = reference.execute(model)(feeds)["y"], session.execute(lower(model, TARGET))(feeds)["y"]
    np.testing.assert_allclose(got, want, rtol=0, atol=0.05 * 1.001)  # a tie may fall on the other side: one step


@pytest.mark.parametrize("kind", ["uint4", "int4", "uint2"])
def test_zero_points_of_few_bits_never_reach_an_integer_kernel(kind: str, tmp_path: Path) -> None:
    """A depthwise QLinearConv with zero points of weights takes 30 times as long as one without."""
    rng = np.random.default_rng(0)
    model = parse(
        """<ir_version: 11, opset_import: ["" : 25]>
        g (float[1, 32, 6, 6] x, float w, float ws, float wz, float s, float z) => (float[a, b, c, d] y) {
            xq = QuantizeLinear(x, s, z)
            xd = DequantizeLinear(xq, s, z)
            f = DequantizeLinear<axis = 0>(w, ws, wz)
            a = Conv<group = 32>(xd, f)
            aq = QuantizeLinear(a, s, z)
            y = DequantizeLinear(aq, s, z)
        }""",
        w=codes(rng, kind, (32, 1, 3, 3)),
        ws=rng.uniform(0.01, 0.1, 32).astype(np.float32),
        wz=codes(rng, kind, (32,)),
        s=np.array(0.05, np.float32),
        z=np.array(128, np.uint8),
    )
    lowered, feeds = lower(model, TARGET), kit.random_feeds(model, 0)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "m.onnx")
    ort.InferenceSession(ir.to_proto(lowered).SerializeToString(), options)
    runs = ir.load(tmp_path / "m.onnx")
    (conv,) = [n for n in runs.graph if n.op_type == "QLinearConv"]
    weight, zero = (edit.constant(conv.inputs[i]) for i in (3, 5))
    assert weight.dtype == np.int8
    assert not zero.any()
    got, want = session.execute(lowered)(feeds)["y"], reference.execute(model)(feeds)["y"]
    np.testing.assert_allclose(got, want, rtol=0, atol=0.05 * 1.001)  # a tie may fall on the other side: one step
