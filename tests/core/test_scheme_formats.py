"""The text form of schemes, and the type that ONNX does not have."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphpress.errors import BadRequest
from graphpress.scale import middle
from graphpress.types import PER_TENSOR, PER_TOKEN, Scheme, per_channel, per_group

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


def test_three_bits_are_half_the_codes_of_four() -> None:
    scheme = Scheme("int3")
    assert (scheme.bits, scheme.qmin, scheme.qmax, middle(scheme)) == (3, -4, 3, 0)
    assert (scheme.storage, scheme.ir_dtype, scheme.opset) == ("int4", ir.DataType.INT4, 21)
    assert Scheme("uint8").storage == "uint8"
