"""cancel-qdq, absorb-clip, share-scales: Before and Expected, and numbers from ONNX Runtime without optimisation."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphpress.graph.grid import grid_of
from graphpress.passes.fold.absorb_clip import AbsorbClip
from graphpress.passes.fold.cancel_qdq import CancelQdq
from graphpress.passes.fold.share_scales import ShareScales
from tests.kit import apply, assert_same_outputs, assert_same_structure, ops, parse, run

FINE = "float s = {0.02}, uint8 z = {128}, float t = {0.03}, uint8 u = {128}, float low = {0.01}, uint8 n = {0}"


def _model(body: str, header: str = "g (float[2,8] x) => (float[2,8] y)", constants: str = FINE) -> str:
    return f"{header}\n<{constants}>\n{{\n{body}\n}}"


def _feeds(seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(2, 8), scale=3).astype(np.float32)}


# --- cancel-qdq


def test_a_chain_of_pairs_becomes_one() -> None:
    before = parse(
        _model("""
    q1 = QuantizeLinear(x, s, z)
    d1 = DequantizeLinear(q1, s, z)
    q2 = QuantizeLinear(d1, s, z)
    d2 = DequantizeLinear(q2, s, z)
    y = Add(d1, d2)""")
    )
    expected = _model("q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  y = Add(d, d)")
    after, [report] = apply(before, CancelQdq())
    assert report.changed == 2
    assert_same_structure(after, parse(expected))
    assert_same_outputs(before, after, _feeds())


def test_a_public_result_keeps_its_name_and_two_of_them_stay_two() -> None:
    before = parse(
        _model(
            "q = QuantizeLinear(x, s, z)  a = DequantizeLinear(q, s, z)  b = DequantizeLinear(q, s, z)"
            "  c = DequantizeLinear(q, s, z)  y = Add(c, c)",
            "g (float[2,8] x) => (float[2,8] y, float[2,8] a, float[2,8] b)",
        )
    )
    after, [report] = apply(before, CancelQdq())
    assert report.changed == 1
    assert ops(after) == ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Add"]
    assert_same_outputs(before, after, _feeds())


def test_a_requantization_stays_and_is_reported() -> None:
    before = parse(
        _model(
            "q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  p = QuantizeLinear(d, t, u)"
            "  y = DequantizeLinear(p, t, u)"
        )
    )
    after, [report] = apply(before, CancelQdq())
    assert report.changed == 0 and ops(after) == ops(before)
    assert [(s.where, "different scale" in s.why) for s in report.skips] == [("QuantizeLinear_2", True)]


def test_equal_channels_cancel_too() -> None:
    constants = "float[2] s = {0.02, 0.05}, int8[2] z = {0, 3}"
    pair = "q{0} = QuantizeLinear<axis=0>({1}, s, z)  d{0} = DequantizeLinear<axis=0>(q{0}, s, z)  "
    before = parse(_model(pair.format(1, "x") + pair.format(2, "d1") + "y = Identity(d2)", constants=constants))
    after, [report] = apply(before, CancelQdq())
    assert report.changed == 1 and ops(after) == ["QuantizeLinear", "DequantizeLinear", "Identity"]
    assert_same_outputs(before, after, _feeds())


@given(st.floats(2.0**-126, 2.0**99, width=32), st.sampled_from(["int8", "uint8", "int16", "uint16"]), st.data())
def test_q_undoes_dq_for_every_integer(scale: float, dtype: str, data: st.DataObject) -> None:
    info = np.iinfo(dtype)
    zero = data.draw(st.integers(info.min, info.max))
    text = f"g (float x) => ({dtype} y) <float s = {{1}}, {dtype} z = {{{zero}}}> {{ y = QuantizeLinear(x, s, z) }}"
    model = parse(text)
    model.graph.initializers["s"].const_value = ir.tensor(np.float32(scale))
    grid = grid_of(model.graph[0])
    assert grid is not None and grid.exact
    q = np.arange(info.min, info.max + 1).astype(dtype)
    real = (q.astype(np.float32) - np.float32(zero)) * np.float32(scale)
    np.testing.assert_array_equal(grid.quantize(real), q)


@pytest.mark.parametrize("scale", ["1e-39", "1e38"])
def test_a_scale_at_the_edge_of_float32_is_left_alone(scale: str) -> None:
    constants = f"float s = {{{scale}}}, uint8 z = {{128}}"
    pair = "{0} = QuantizeLinear({1}, s, z)  {2} = DequantizeLinear({0}, s, z)"
    body = pair.format("q", "x", "d") + pair.format("p", "d", "y")
    _, [report] = apply(parse(_model(body, constants=constants)), CancelQdq())
    assert report.changed == 0 and report.skips


# --- absorb-clip


@pytest.mark.parametrize(
    ("op", "scale", "zero", "absorbed"),
    [
        ("Relu(h)", 0.1, 0, True),
        ("Relu(h)", 0.1, 1, False),
        ("Relu(h)", 0.1, 128, False),
        ("Clip(h, lo, hi)", 6 / 255, 0, True),
        ("Clip(h, lo, hi)", 5 / 255, 0, True),
        ("Clip(h, lo, hi)", 7 / 255, 0, False),
        ("Clip(h, lo)", 7 / 255, 0, True),
        ("Clip(h, , hi)", 7 / 255, 0, False),
        ("Clip(h, , hi)", 6 / 254, 1, True),
        ("Clip(h, computed, hi)", 6 / 255, 0, False),
    ],
)
def test_saturation_does_the_clipping(op: str, scale: float, zero: int, absorbed: bool) -> None:
    constants = f"float s = {{{np.float32(scale)!r:.20}}}, uint8 z = {{{zero}}}, float lo = {{0}}, float hi = {{6}}"
    constants = constants.replace("np.float32(", "").replace(")", "")
    body = f"h = Neg(x)  r = {op}  q = QuantizeLinear(r, s, z)  y = DequantizeLinear(q, s, z)"
    before = parse(_model("computed = ReduceMin<keepdims=0>(x)  " + body, constants=constants))
    after, [report] = apply(before, AbsorbClip())
    assert (report.changed == 1) is absorbed
    assert {"Relu", "Clip"}.isdisjoint(ops(after)) is absorbed
    wide = {"x": np.linspace(-20, 20, 16, dtype=np.float32).reshape(2, 8)}
    assert_same_outputs(before, after, wide)


def test_it_sees_through_movement_to_every_reader() -> None:
    before = parse(
        _model("""
    r = Relu(x)
    t1 = Transpose(r)
    q1 = QuantizeLinear(t1, low, n)
    d1 = DequantizeLinear(q1, low, n)
    q2 = QuantizeLinear(r, low, n)
    d2 = DequantizeLinear(q2, low, n)
    y = MatMul(d2, d1)""").replace("float[2,8] y", "float[2,2] y")
    )
    after, _ = apply(before, AbsorbClip())
    assert "Relu" not in ops(after)
    assert_same_outputs(before, after, _feeds())


@pytest.mark.parametrize("reader", ["y = Neg(r)", "y = Add(r, d)"])
def test_a_reader_of_floats_keeps_the_relu(reader: str) -> None:
    body = f"r = Relu(x)  q = QuantizeLinear(r, low, n)  d = DequantizeLinear(q, low, n)  {reader}"
    before = parse(_model(body, constants=FINE))
    after, [report] = apply(before, AbsorbClip())
    assert report.changed == 0 and ops(after) == ops(before)


def test_a_relu_of_what_cannot_be_negative_goes() -> None:
    constants = "float s = {0.1}, uint8 z = {0}"
    before = parse(
        _model("q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  y = Relu(d)", constants=constants)
    )
    after, _ = apply(before, AbsorbClip())
    assert ops(after) == ["QuantizeLinear", "DequantizeLinear"]
    assert_same_outputs(before, after, _feeds())


def test_why_a_relu_stays_is_said() -> None:
    body = "r = Relu(x)  q = QuantizeLinear(r, s, z)  y = DequantizeLinear(q, s, z)"
    _, [report] = apply(parse(_model(body)), AbsorbClip())
    assert report.skips[0].where == "Relu_0" and "uint8 over [-2.56, 2.54]" in report.skips[0].why


# --- share-scales

POOL = """
g (float[1,2,4,4] x) => (float[1,2,2,2] y)
<float s = {0.03}, uint8 z = {128}, float t = {0.02}, uint8 u = {100}>
{
    h = Neg(x)
    q1 = QuantizeLinear(h, s, z)
    d1 = DequantizeLinear(q1, s, z)
    p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(d1)
    q2 = QuantizeLinear(p, t, u)
    y = DequantizeLinear(q2, t, u)
}
"""


def test_the_first_of_two_roundings_goes_where_the_second_range_lies_within() -> None:
    before = parse(POOL)
    after, [report] = apply(before, ShareScales())
    assert report.changed == 1
    assert ops(after) == ["Neg", "MaxPool", "QuantizeLinear", "DequantizeLinear"]
    feeds = {"x": np.random.default_rng(0).normal(size=(1, 2, 4, 4), scale=2).astype(np.float32)}
    a, b = run(before, feeds)["y"], run(after, feeds)["y"]
    assert (
        0 < np.abs(a - b).max() <= 0.015 + 0.02 * 1.001
    )  # half a step of the first grid, then one rounding of the second


def test_the_second_goes_where_the_first_range_lies_within_and_the_types_are_equal() -> None:
    body = """
    q1 = QuantizeLinear(x, s, z)
    d1 = DequantizeLinear(q1, s, z)
    h = Transpose(d1)
    q2 = QuantizeLinear(h, t, u)
    d2 = DequantizeLinear(q2, t, u)
    y = MatMul(d1, d2)"""
    before = parse(_model(body).replace("float[2,8] y", "float[2,2] y"))
    after, [report] = apply(before, ShareScales())
    assert report.changed == 1
    assert ops(after) == ["QuantizeLinear", "DequantizeLinear", "Transpose", "MatMul"]


def test_no_clipping_is_lost() -> None:
    before = parse(POOL.replace("s = {0.03}", "s = {0.01}").replace("u = {100}", "u = {0}"))
    after, [report] = apply(before, ShareScales())
    assert report.changed == 0 and ops(after) == ops(before)
    assert "int8 over [-1.28, 1.27] to uint8 over [0, 5.1]" in report.skips[0].why


GEMM = """
g (float[1,4] x) => (float[1,4] h, float[1,2] y)
<float s = {0.02}, uint8 z = {128}, float t = {0.03}, uint8 u = {128}, int8[2,4] w = {1,2,3,4,5,6,7,8},
 int32[2] b = {5, 6}, float sw = {0.01}, int8 zw = {0}, float sb = {0.0003}, int32 zb = {0}>
{
    q1 = QuantizeLinear(x, s, z)
    d1 = DequantizeLinear(q1, s, z)
    h = Identity(d1)
    q2 = QuantizeLinear(h, t, u)
    d2 = DequantizeLinear(q2, t, u)
    dw = DequantizeLinear(w, sw, zw)
    db = DequantizeLinear(b, sb, zb)
    y = Gemm<transB = 1>(d2, dw, db)
}
"""


def test_an_integer_bias_holds_on_to_its_scale() -> None:
    before = parse(GEMM)
    after, [report] = apply(before, ShareScales())
    assert ops(after) == ops(before)
    assert report.skips[0].why == "the integer bias behind it was made for its scale"


def test_a_chain_of_grids_ends_as_one() -> None:
    pairs = "q{0} = QuantizeLinear(h{1}, {2})  d{0} = DequantizeLinear(q{0}, {2})  h{0} = Transpose(d{0})  "
    wide, narrow = "t, u", "low, n"
    chain = [wide, wide, wide, narrow, narrow]
    body = "h0 = Neg(x)  " + "".join(pairs.format(i + 1, i, grid) for i, grid in enumerate(chain))
    before = parse(_model(body + "y = Transpose(h5)"))
    after, [report] = apply(before, ShareScales())
    assert report.changed == 3
    scales = [n.inputs[1].name for n in after.graph if n.op_type == "QuantizeLinear" and n.inputs[1] is not None]
    assert scales == ["low", "low"]  # on one grid now: move-qdq brings them together
    turned = [narrow, "s, z", "s, z", wide, wide]
    body = "h0 = Neg(x)  " + "".join(pairs.format(i + 1, i, grid) for i, grid in enumerate(turned))
    after, [report] = apply(parse(_model(body + "y = Transpose(h5)")), ShareScales())
    assert report.changed == 4 and ops(after).count("QuantizeLinear") == 1
