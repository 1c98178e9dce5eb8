"""fold-bias at its limits: 2**30 steps of the accumulator, the smallest normal scale, whose scale may be enlarged."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.graph import edit
from graphpress.passes.fold.fold_bias import FoldBias
from tests.kit import apply, ops, parse

S_X, S_W = 2.0**-6, 2.0**-20
CONV = """
g (float[1,1,3,3] x) => (float[1,2,3,3] y)
<float s = {0.015625}, uint8 z = {128}, float[2,1,1,1] w = {0.0, 0.0}, float[2] t = {1, 1}, int8[2] u = {0, 0},
 float[2] b = {0, 0}>
{
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    p = QuantizeLinear<axis = 0>(w, t, u)
    k = DequantizeLinear<axis = 0>(p, t, u)
    [conv] y = Conv(d, k, b)
}
"""


def conv(bias: list[float], scales: list[float], source: str = CONV) -> ir.Model:
    model = parse(source)
    for name, array in (("b", bias), ("t", scales)):
        model.graph.initializers[name].const_value = ir.tensor(np.array(array, np.float32), name=name)
    return model


def folded(model: ir.Model) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(weight scales, bias codes, bias scales) of the node called conv."""
    node = edit.find(model, "conv")
    weight, bias = node.inputs[1].producer(), node.inputs[2].producer()
    scale, codes, step = (edit.constant(v) for v in (weight.inputs[1], bias.inputs[0], bias.inputs[1]))
    return scale, codes, step


def test_two_to_the_thirtieth_steps_are_allowed() -> None:
    after, (report,) = apply(conv([16.0, -16.0], [S_W, S_W]), FoldBias())
    scales, codes, steps = folded(after)
    assert report.changed == 1
    np.testing.assert_array_equal(scales, np.float32([S_W, S_W]))
    np.testing.assert_array_equal(codes, [2**30, -(2**30)])
    np.testing.assert_array_equal(steps, np.float32([S_X * S_W] * 2))


@pytest.mark.parametrize("bias", [16.01, -16.01, 1000.0])
def test_beyond_them_the_scale_of_that_channel_grows_by_no_more_than_it_must(bias: float) -> None:
    after, _ = apply(conv([1.0, bias], [S_W, S_W]), FoldBias())
    scales, codes, steps = folded(after)
    assert scales[0] == np.float32(S_W) and codes[0] == 2**26
    assert 0.9998 * 2**30 <= abs(codes[1]) <= 2**30 and np.sign(codes[1]) == np.sign(bias)
    np.testing.assert_array_equal(steps, np.float32(S_X) * scales)
    np.testing.assert_allclose(codes * steps.astype(np.float64), [1.0, bias], rtol=1e-6)
    quantize = edit.find(after, "conv").inputs[1].producer().inputs[0].producer()
    np.testing.assert_array_equal(edit.constant(quantize.inputs[1]), scales)  # Q and DQ agree


def test_the_step_stays_a_normal_number() -> None:
    tiny = 2.0**-126
    for scale, grows in ((tiny / S_X * 1.01, False), (tiny / S_X / 4, True)):
        after, _ = apply(conv([0.0, 0.0], [1.0, scale]), FoldBias())
        scales, codes, steps = folded(after)
        assert (scales[1] != np.float32(scale)) == grows
        assert tiny <= steps[1] <= 1.02 * tiny and codes[1] == 0


def test_codes_are_rounded_to_the_nearest_and_halves_to_even() -> None:
    after, _ = apply(conv([2.5 * 2**-26, -1.6 * 2**-26], [S_W, S_W]), FoldBias())
    np.testing.assert_array_equal(folded(after)[1], [2, -2])


def _left(model: ir.Model, why: str) -> None:
    before = ops(model)
    after, (report,) = apply(model, FoldBias())
    assert ops(after) == before and report.changed == 0
    assert [s.where for s in report.skips] == ["conv"] and why in report.skips[0].why


def test_one_scale_for_all_channels_cannot_grow_for_one() -> None:
    source = CONV.replace("float[2] t = {1, 1}, int8[2] u = {0, 0}", "float t = {1}, int8 u = {0}")
    model = parse(source.replace("<axis = 0>", ""))
    for name, array in (("b", [1.0, 17.0]), ("t", S_W)):
        model.graph.initializers[name].const_value = ir.tensor(np.array(array, np.float32), name=name)
    _left(model, "the bias of channel 1 overflows int32, and the weight has one scale for all channels")
    model.graph.initializers["b"].const_value = ir.tensor(np.array([1.0, 16.0], np.float32), name="b")
    after, (report,) = apply(model, FoldBias())
    assert report.changed == 1
    np.testing.assert_array_equal(folded(after)[1], [2**26, 2**30])


def test_each_bias_that_is_folded_counts() -> None:
    source = CONV.replace("y)\n<", "y, float[1,2,3,3] v)\n<").replace("(d, k, b)", "(d, k, b) v = Conv(d, k, b)")
    after, (report,) = apply(conv([1.0, 2.0], [S_W, S_W], source), FoldBias())
    assert report.changed == 2 and "b" not in after.graph.initializers


@pytest.mark.parametrize("more", ["v = Conv(d, k)", "v = DequantizeLinear<axis = 0>(p, t, u)"])
def test_a_weight_that_another_node_reads_keeps_its_scale(more: str) -> None:
    source = CONV.replace("=> (float[1,2,3,3] y)", "=> (float[1,2,3,3] y, float[] v)").replace(
        "(d, k, b)", f"(d, k, b) {more}"
    )
    source = source.replace("float[] v", "float[1,2,3,3] v" if "Conv" in more else "float[2,1,1,1] v")
    _left(
        conv([1.0, 17.0], [S_W, S_W], source),
        "channel 1 overflows int32, and the weight is stored as integers or shared",
    )


@pytest.mark.parametrize(
    ("codes", "bias", "dead"),
    [("3, 128", 1.0, True), ("3, 127", 1.0, False), ("128, 3", 1.0, False), ("128, 3", 17.0, False)],
)
def test_integers_that_stand_for_zero_mean_the_same_at_any_scale(codes: str, bias: float, dead: bool) -> None:
    source = CONV.replace("float[2,1,1,1] w = {0.0, 0.0}", f"uint8[2,1,1,1] p = {{{codes}}}")
    source = source.replace("int8[2] u = {0, 0}", "uint8[2] u = {128, 128}").replace(
        "p = QuantizeLinear<axis = 0>(w, t, u)", ""
    )
    model = conv([bias, 17.0], [S_W, S_W], source)
    if dead:
        after, _ = apply(model, FoldBias())
        scales, steps, _ = folded(after)
        assert scales[0] == np.float32(S_W) < scales[1] and 0.9998 * 2**30 <= steps[1] <= 2**30
    else:
        _left(model, "stored as integers")


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("Conv(d, k, b)", "Conv(x, k, b)", "input or weight is not quantized"),
        ("Conv(d, k, b)", "Conv(d, w, b)", "input or weight is not quantized"),
        ("[conv] y = Conv(d, k, b)", "c = Exp(b) [conv] y = Conv(d, k, c)", "the bias is computed at run time"),
        ("q = QuantizeLinear(x, s, z)", "r = Exp(s) q = QuantizeLinear(x, r, z)", None),
        ("d = DequantizeLinear(q, s, z)", "r = Exp(s) d = DequantizeLinear(q, r, z)", "a scale is computed"),
        ("k = DequantizeLinear<axis = 0>(p, t", "r = Exp(t) k = DequantizeLinear<axis = 0>(p, r", "a scale is"),
    ],
)  # fmt: skip
def test_what_is_not_known_before_the_run_is_left(old: str, new: str, why: str | None) -> None:
    source = CONV.replace(old, new)
    assert source != CONV
    if why is None:
        assert apply(conv([1.0, 1.0], [1.0, 1.0], source), FoldBias())[1][0].changed == 1
    else:
        _left(conv([1.0, 1.0], [1.0, 1.0], source), why)


GEMM = """
g (float[3,2] x) => (float[3,2] y)
<float s = {0.02}, uint8 z = {128}, int8[2,2] w = {1,2,3,4}, float[2] t = {0.25, 0.5}, int8[2] u = {0, 0},
 float[2] b = {1, 2}>
{
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    k = DequantizeLinear<axis = 1>(w, t, u)
    [conv] y = Gemm(d, k, b)
}
"""


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("Gemm(", "Gemm<alpha = 0.5>(", "alpha or beta is not 1"),
        ("Gemm(", "Gemm<transB = 1>(", "do not go by output channel"),
        ("axis = 1", "axis = 0", "do not go by output channel"),
        ("float[2] b = {1, 2}", "float[3,2] b = {1, 2, 1, 2, 1, 2}", "not one float32 number a channel"),
    ],
)
def test_a_gemm_that_is_no_linear_layer_is_left(old: str, new: str, why: str) -> None:
    _left(parse(GEMM.replace(old, new)), why)


@pytest.mark.parametrize(("axis", "trans"), [(1, 0), (-1, 0), (0, 1), (-2, 1)])
def test_the_channels_of_a_gemm_are_columns_or_rows(axis: int, trans: int) -> None:
    source = GEMM.replace("axis = 1", f"axis = {axis}").replace("Gemm(", f"Gemm<transB = {trans}>(")
    after, (report,) = apply(parse(source), FoldBias())
    assert report.changed == 1
    np.testing.assert_array_equal(folded(after)[1], [200, 200])
