"""share-scales at its limits: ranges that just fit, several readers, biases that hold on to a scale."""

from __future__ import annotations

import pytest

from graphpress.passes.fold.share_scales import ShareScales
from tests.kit import apply, ops, parse
from tests.passes.fold.test_fold_qdq import GEMM

TWO = """
g (float[1,2,4,4] x) => (float[1,2,4,4] y)
<float s = {0.5}, uint8 z = {128}, float t = {0.25}, uint8 u = {0}>
{
    h = Neg(x)
    q1 = QuantizeLinear(h, s, z)
    d1 = DequantizeLinear(q1, s, z)
    q2 = QuantizeLinear(d1, t, u)
    y = DequantizeLinear(q2, t, u)
}
"""


@pytest.mark.parametrize(
    ("first", "second", "gone"),
    [
        ((0.5, 128), (0.25, 0), True),  # [-64, 63.5] holds [0, 63.75] but for half a step of 0.5
        ((0.5, 129), (0.25, 0), False),  # [-64.5, 63] does not
        ((0.5, 127), (0.25, 255), True),  # [-63.5, 64] and [-63.75, 0]
        ((0.5, 126), (0.25, 255), False),  # [-63, 64.5]
        ((0.5, 128), (0.2505, 0), False),  # beyond by more than half a step, and less than a whole one
        ((0.5, 127), (0.2505, 255), False),
        ((0.5, 128), (0.25, 128), True),
        ((0.5, 0), (0.25, 255), False),  # [0, 127.5] and [-63.75, 0]: the other way round
        ((0.5, 255), (0.25, 0), False),
    ],
)
def test_the_first_goes_where_it_holds_the_second_up_to_half_its_step(
    first: tuple[float, int], second: tuple[float, int], gone: bool
) -> None:
    text = TWO.replace("s = {0.5}, uint8 z = {128}", f"s = {{{first[0]}}}, uint8 z = {{{first[1]}}}")
    before = parse(text.replace("t = {0.25}, uint8 u = {0}", f"t = {{{second[0]}}}, uint8 u = {{{second[1]}}}"))
    after, (report,) = apply(before, ShareScales())
    assert report.changed == gone
    assert ops(after) == (["Neg", "QuantizeLinear", "DequantizeLinear"] if gone else ops(before))
    assert len(report.skips) == (not gone)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("h = Neg(x)", "h = Neg(k)"),  # of a constant; it is folded elsewhere
        ("y = Deq", "v = QuantizeLinear(d1, s, u) w = DequantizeLinear(v, s, u) y = Deq"),  # wanted on two grids
        ("y = Deq", "v = DequantizeLinear(q1, s, u) y = Deq"),  # one of the two is wanted on none
    ],
)
def test_what_has_other_readers_stays(old: str, new: str) -> None:
    text = TWO.replace(old, new)
    if "(k)" in new:
        text = (
            text.replace("h = Neg(k)", "")
            .replace("(h,", "(k,")
            .replace("<float s", "<float[1,2,4,4] k = {" + ",".join(["1"] * 32) + "}, float s")
        )
    if " w = " in new:
        text = text.replace("=> (float[1,2,4,4] y)", "=> (float[1,2,4,4] y, float[1,2,4,4] w)")
    if "v = Deq" in new:
        text = text.replace("=> (float[1,2,4,4] y)", "=> (float[1,2,4,4] y, float[1,2,4,4] v)")
    before = parse(text)
    after, (report,) = apply(before, ShareScales())
    assert report.changed == 0 and ops(after) == ops(before)


def test_a_scale_for_each_channel_is_shared_with_nobody() -> None:
    text = TWO.replace("float s = {0.5}, uint8 z = {128}", "float[2] s = {0.5, 0.5}, uint8[2] z = {128, 128}")
    before = parse(text.replace("(h, s, z)", "<axis = 1>(h, s, z)").replace("(q1, s, z)", "<axis = 1>(q1, s, z)"))
    after, (report,) = apply(before, ShareScales())
    assert report.changed == 0 and ops(after) == ops(before)


@pytest.mark.parametrize(
    ("changes", "held"),
    [
        ({}, True),
        ({"Gemm<transB = 1>(d2, dw, db)": "Gemm<transB = 1>(d2, dw)"}, False),  # no bias
        ({"int32[2] b =": "float[2] b =", "db = DequantizeLinear(b, sb, zb)": "", "dw, db": "dw, b"}, False),
        ({"int32[2] b = {5, 6}": "int8[2] b = {5, 6}", "int32 zb": "int8 zb"}, False),
        ({"(float[1,4] h, ": "(float[1,4] h, float[1,4] v, ", "y = Gemm": "v = Neg(d2) y = Gemm"}, True),  # one of two
    ],
)  # fmt: skip
def test_only_an_integer_bias_holds_on_to_the_scale(changes: dict[str, str], held: bool) -> None:
    text = GEMM
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    before = parse(text)
    after, (report,) = apply(before, ShareScales())
    assert report.changed == (not held)
    assert ops(after).count("QuantizeLinear") == (2 if held else 1)
    assert [s.why for s in report.skips] == (["the integer bias behind it was made for its scale"] if held else [])
