"""The one reader of quantized values, on every form that passes write and some that they do not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphpress import keys
from graphpress.context import Context
from graphpress.contracts import PassReport
from graphpress.errors import BadRequest
from graphpress.graph import edit, quantized
from graphpress.passes.fold.fold_weights import FoldWeights
from graphpress.passes.quantize.apply_plan import ApplyPlan
from graphpress.passes.quantizers.codebook import Codebook
from graphpress.types import PER_TENSOR, PER_TOKEN, Granularity, Plan, Role, Scheme, Site, per_channel, per_group
from tests.passes.quantizing import model, normal

TEXT = "g (float[N, 16] x, float[16, 8] w) => (float[N, 8] y) { [m] y = MatMul(x, w) }"
WEIGHT, X = Site("m", 1, Role.WEIGHT), Site("m", 0, Role.ACTIVATION)


def written(schemes: dict[Site, Scheme], *, fold: bool = False) -> tuple[ir.Model, ir.Node]:
    made = model(TEXT, {"w": normal(16, 8)})
    ApplyPlan(Plan(schemes)).run(made, Context(), PassReport())
    if fold:
        FoldWeights().run(made, Context(), PassReport())
    return made, edit.find(made, "m")


@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(1), per_group(0, 4)])
def test_a_float_weight_is_a_pair_until_it_is_folded(granularity: Granularity) -> None:
    _, node = written({WEIGHT: Scheme("int4", granularity)})
    found = quantized.pair(node.inputs[1])
    assert found is not None
    assert (found.granularity, found.quantizer, found.same) == (granularity, "affine", True)
    assert (found.source.name, quantized.unquantized(node.inputs[1])) == ("w", found.source)
    assert quantized.weight(node.inputs[1]) is None
    assert [(n.name, slot) for n, slot in quantized.readers(found.source)] == [("m", 1)]
    scale = found.encode.inputs[1]
    assert scale is not None and quantized.holds_scale(scale) and not quantized.holds_scale(found.source)


@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(1), per_group(0, 4)])
def test_codes_mean_what_their_pair_meant(granularity: Granularity) -> None:
    scheme = Scheme("uint4", granularity, symmetric=False)
    _, before = written({WEIGHT: scheme})
    pair = quantized.pair(before.inputs[1])
    assert pair is not None
    codes = quantized.encoder(pair.encode)(normal(16, 8))
    _, node = written({WEIGHT: scheme}, fold=True)
    found = quantized.weight(node.inputs[1])
    assert found is not None and quantized.pair(node.inputs[1]) is None
    np.testing.assert_array_equal(found.codes, codes)
    assert (found.bits, found.axis, found.block) == (4, granularity.axis, granularity.group_size or 0)
    values = quantized.floats(node.inputs[1])
    assert values is not None
    scale, zero = found.scale, found.zero.astype(np.float32)
    if found.block:
        scale, zero = (np.repeat(a, found.block, axis=0) for a in (scale, zero))
    np.testing.assert_allclose(values, (found.codes.astype(np.float32) - zero) * scale, rtol=1e-6)


def test_activations_of_each_kind() -> None:
    _, node = written({WEIGHT: Scheme("int8"), X: Scheme("uint8", symmetric=False, dynamic=True)})
    dynamic = quantized.activation(node.inputs[0])
    assert dynamic is not None and (dynamic.kind, dynamic.source.name, dynamic.bits) == ("dynamic", "x", 8)
    _, node = written({WEIGHT: Scheme("int8"), X: Scheme("int4", PER_TOKEN, dynamic=True)})
    token = quantized.activation(node.inputs[0])
    assert token is not None and (token.kind, token.source.name, token.bits, token.zero) == ("token", "x", 4, None)
    _, node = written({WEIGHT: Scheme("int8")}, fold=True)
    assert quantized.activation(node.inputs[1]) is None


def test_a_plain_value_is_none_of_them() -> None:
    node = edit.find(model(TEXT, {"w": normal(16, 8)}), "m")
    for value in node.inputs:
        assert quantized.pair(value) is quantized.weight(value) is quantized.activation(value) is None
        assert quantized.unquantized(value) is value
    np.testing.assert_array_equal(quantized.floats(node.inputs[1]), normal(16, 8))
    assert quantized.floats(node.inputs[0]) is None


def test_operators_of_the_dialect_say_themselves_that_they_convert() -> None:
    encode, decode = Codebook.encode, Codebook.decode
    made = ir.node(encode.op_type, [None], domain=encode.domain), ir.node(decode.op_type, [None], domain=decode.domain)
    assert [quantized.encodes(n) for n in made] == [True, False]
    assert [quantized.decodes(n) for n in made] == [False, True]
    stranger = ir.node(encode.op_type, [None], domain="elsewhere")
    assert not quantized.encodes(stranger) and not quantized.decodes(None)


def test_schemes_on_a_node_are_read_as_they_were_written() -> None:
    schemes = {WEIGHT: Scheme("int4", per_group(0, 4), observer="mse"), X: Scheme("int8", PER_TOKEN, dynamic=True)}
    _, node = written(schemes)
    assert keys.schemes(node) == schemes
    node.metadata_props[keys.SCHEME] = "weight int8 8_learners"
    with pytest.raises(BadRequest, match="no scheme"):
        keys.schemes(node)
