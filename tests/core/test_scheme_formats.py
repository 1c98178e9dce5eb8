"""The text form of schemes, and the type that ONNX does not have."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphpress.errors import BadRequest
from graphpress.scale import middle
from graphpress.types import PER_TENSOR, PER_TOKEN, Kind, Scheme, per_channel, per_group

GRAINS = st.sampled_from([PER_TENSOR, per_channel(1), per_group(0, 64)])
STATIC = st.builds(
    Scheme, st.sampled_from(["int8", "uint4", "int3", "int16"]), GRAINS, st.booleans(), st.just(False),
    st.sampled_from(["minmax", "mse"]), st.sampled_from(["affine", "power", "power:exponent=0.5"]),
)  # fmt: skip
DYNAMIC = st.builds(Scheme, st.sampled_from(["int8", "int4"]), st.just(PER_TOKEN), st.booleans(), st.just(True))


@given(STATIC | DYNAMIC)
def test_text_says_all_of_it(scheme: Scheme) -> None:
    assert Scheme.parse(str(scheme)) == scheme
    assert Scheme.from_json(scheme.to_json()) == scheme


WRONG = ["", "int4", "int4 per_tensor sym", "int4 per_tensor odd mse", "int4 per_tensor sym mse x"]


@pytest.mark.parametrize("text", [*WRONG, "int4 per_tensor sym mse power", "int4 per_tensor sym mse quantizer=power x"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="no scheme"):
        Scheme.parse(text)


@given(STATIC | DYNAMIC, STATIC | DYNAMIC)
def test_all_the_words_of_a_scheme_make_any_other_into_it(base: Scheme, wanted: Scheme) -> None:
    made = base.altered(f"{wanted} quantizer={wanted.quantizer}")
    assert str(made) == str(wanted)


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("", "int4 per_channel:0 sym mse quantizer=power"),
        ("asym uint4", "uint4 per_channel:0 asym mse quantizer=power"),
        ("per_channel", "int4 per_channel:2 sym mse quantizer=power"),
        ("per_group:16 minmax", "int4 per_group:1:16 sym minmax quantizer=power"),
        ("per_group:0:16", "int4 per_group:0:16 sym mse quantizer=power"),
        ("per_token quantizer=affine", "int4 per_token sym dynamic"),
    ],
)
def test_words_change_what_they_are_about_and_axes_may_go_without_saying(text: str, becomes: str) -> None:
    base = Scheme("int4", per_channel(0), observer="mse", quantizer="power")
    assert str(base.altered(text, {Kind.CHANNEL: 2, Kind.GROUP: 1})) == becomes


@pytest.mark.parametrize(
    ("text", "why"),
    [("per_group:16", "needs an axis"), ("per_chanel:1", "unknown granularity"), ("int5", "unknown storage")],
)
def test_words_that_mean_nothing_are_refused(text: str, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        Scheme().altered(text, {Kind.GROUP: None})


def test_three_bits_are_half_the_codes_of_four() -> None:
    scheme = Scheme("int3")
    assert (scheme.bits, scheme.qmin, scheme.qmax, middle(scheme)) == (3, -4, 3, 0)
    assert (scheme.storage, scheme.ir_dtype, scheme.opset) == ("int4", ir.DataType.INT4, 21)
    assert Scheme("uint8").storage == "uint8"
