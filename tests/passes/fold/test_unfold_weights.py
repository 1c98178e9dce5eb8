"""unfold-weights: float weights behind Q -> DQ give the codes that were stored, and fold-weights gives them back."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphpress.passes.fold.fold_weights import FoldWeights
from graphpress.passes.fold.unfold_weights import UnfoldWeights
from tests.kit import apply, assert_same_outputs, ops, parse, run

CODES = ["int8", "uint8", "int16", "uint16", "int4", "uint4", "int2", "uint2"]


def _stored(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, **attributes: int) -> ir.Model:
    """y = DQ(codes) behind an Add of x, so that a node reads it."""
    made = [ir.Value(name=n, const_value=ir.tensor(a, name=n)) for n, a in (("w", codes), ("s", scale), ("z", zero))]
    for value in made:
        assert value.const_value is not None
        value.type, value.shape = ir.TensorType(value.const_value.dtype), value.const_value.shape
    attrs = ir.convenience.convert_attributes(attributes)
    dq = ir.Node("", "DequantizeLinear", made, attrs, name="dq", outputs=[ir.Value(name="d")])
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(codes.shape))
    add = ir.Node("", "Add", [x, dq.outputs[0]], name="add", outputs=[ir.Value(name="y")])
    for value in (*dq.outputs, *add.outputs):
        value.type, value.shape = x.type, x.shape
    graph = ir.Graph([x], add.outputs, nodes=[dq, add], initializers=made, opset_imports={"": 25}, name="g")
    return ir.Model(graph, ir_version=10, metadata_props={"graphpress.stage": "qdq"})


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(CODES), st.sampled_from(["tensor", "channel", "block"]), st.integers(0, 2**31), st.booleans())
def test_folding_again_gives_the_stored_codes(name: str, kind: str, seed: int, zeros: bool) -> None:
    rng = np.random.default_rng(seed)
    dtype = ir.DataType[name.upper()].numpy()
    bits, signed = int("".join(filter(str.isdigit, name))), name[0] == "i"
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    codes = rng.integers(low, high + 1, (4, 6)).astype(dtype)
    shape = {"tensor": (), "channel": (6,), "block": (2, 6)}[kind]
    zero = (rng.integers(low, high + 1, shape) if zeros else np.zeros(shape, np.int64)).astype(dtype)
    scale = np.asarray(10.0 ** rng.uniform(-6, 2, shape), np.float32)
    attributes = {"tensor": {}, "channel": {"axis": 1}, "block": {"axis": 0, "block_size": 2}}[kind]
    model = _stored(codes, scale, zero, **attributes)
    opened, (report,) = apply(model, UnfoldWeights())
    assert report.changed == 1
    assert ops(opened) == ["QuantizeLinear", "DequantizeLinear", "Add"]
    floats = opened.graph.initializers["add.weight"].const_value
    assert floats is not None
    assert floats.dtype == ir.DataType.FLOAT
    folded, _ = apply(opened, FoldWeights())
    found = {v.dtype: v.const_value for v in folded.graph.initializers.values() if v.shape == ir.Shape((4, 6))}
    (tensor,) = found.values()
    assert tensor is not None
    shifted = 128 if name == "uint8" and np.all(zero == 128) else 0
    np.testing.assert_array_equal(tensor.numpy().astype(np.int64) + shifted, codes.astype(np.int64))
    if bits > 2:  # ONNX Runtime has no kernel of two bits here
        assert_same_outputs(model, opened, {"x": np.zeros((4, 6), np.float32)}, rtol=0, atol=0)


CONV = """
g (float[N, 2, 4, 4] x) => (float[N, 3, 4, 4] y)
<float xs = {0.05}, uint8 xz = {100}, uint8[3, 2, 1, 1] w = {100, 130, 250, 3, 128, 127},
 float[3] ws = {0.01, 0.02, 0.03},
 uint8[3] wz = {128, 128, 128}, int32[3] b = {100, -20, 7}, float[3] bs = {0.0005, 0.001, 0.0015}> {
    q = QuantizeLinear(x, xs, xz)
    a = DequantizeLinear(q, xs, xz)
    k = DequantizeLinear<axis = 0>(w, ws, wz)
    c = DequantizeLinear<axis = 0>(b, bs)
    y = Conv(a, k, c)
}
"""


def test_a_bias_is_a_plain_float_and_codes_around_128_become_signed() -> None:
    model = parse(CONV)
    model.metadata_props["graphpress.stage"] = "qdq"
    opened, _ = apply(model, UnfoldWeights())
    values = opened.graph.initializers
    bias, weight = (next(v for n, v in values.items() if n.endswith(part)) for part in (".bias", ".weight"))
    np.testing.assert_allclose(bias.const_value.numpy(), [0.05, -0.02, 0.0105], rtol=1e-6)  # type: ignore[union-attr]
    expected = np.array([-28, 2, 122, -125, 0, -1]) * np.repeat([0.01, 0.02, 0.03], 2)
    np.testing.assert_allclose(weight.const_value.numpy().ravel(), expected, rtol=1e-6)  # type: ignore[union-attr]
    (quantize,) = (u.node for u in weight.uses())
    assert quantize.outputs[0].dtype == ir.DataType.INT8
    x = np.random.default_rng(0).normal(size=(2, 2, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(run(opened, {"x": x})["y"], run(model, {"x": x})["y"], atol=1e-6)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("k = DequantizeLinear<axis = 0>(w, ws)\n t = Transpose<perm = [1, 0]>(k)", ""),
        (
            "v = Transpose<perm = [1, 0]>(w)\n t = DequantizeLinear<axis = 1>(v, ws, wz)",
            "have a scale for each channel",
        ),
        ("v = Transpose<perm = [1, 0]>(w)\n t = DequantizeLinear(v, one, zero)", ""),
    ],
)
def test_codes_that_are_moved(body: str, why: str) -> None:
    model = parse(
        f"g (float[N, 3] x) => (float[N, 2] y)\n"
        f"<int8[2, 3] w = {{1, 2, 3, 4, 5, 6}}, float[2] ws = {{0.1, 0.2}}, int8[2] wz = {{0, 1}},"
        f" float one = {{0.5}}, int8 zero = {{2}}> {{\n{body}\n"
        f"y = MatMul(x, t) }}"
    )
    model.metadata_props["graphpress.stage"] = "qdq"
    opened, (report,) = apply(model, UnfoldWeights())
    assert (report.changed, [s.why for s in report.skips if why in s.why] != []) == (int(not why), bool(why))
    assert_same_outputs(model, opened, {"x": np.eye(3, dtype=np.float32)}, rtol=0, atol=0)


def test_codes_that_something_else_reads_stay() -> None:
    model = parse(
        "g (float[N, 3] x) => (float[N, 2] y, int8[3, 2] c)\n"
        "<int8[3, 2] w = {1, 2, 3, 4, 5, 6}, float s = {0.1}> {\n"
        "t = DequantizeLinear(w, s)\n y = MatMul(x, t)\n c = Identity(w) }"
    )
    model.metadata_props["graphpress.stage"] = "qdq"
    _, (report,) = apply(model, UnfoldWeights())
    assert report.changed == 0
