"""Targets: data loaded for a machine, and plans checked against it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.target import Target
from graphpress.types import PER_TENSOR, PER_TOKEN, Role, Scheme, Site, per_channel, per_group
from tests import kit

TARGET = Target.load("ort-cpu", "x86-64+vnni")
U8 = Scheme("uint8", symmetric=False)
DYNAMIC = Scheme("uint8", symmetric=False, dynamic=True)
TOKEN = Scheme("int8", PER_TOKEN, dynamic=True)
X, W, Y = Site("op", 0, Role.ACTIVATION), Site("op", 1, Role.WEIGHT), Site("op", 0, Role.OUTPUT)
CONV = "g (float[1,8,6,6] x, float[16,8,3,3] w) => (float[1,16,4,4] y) { [op] y = Conv(x, w) }"
MATMUL = "g (float[4,64] x, float[64,32] w) => (float[4,32] y) { [op] y = MatMul(x, w) }"
GEMM = "g (float[4,64] x, float[32,64] w) => (float[4,32] y) { [op] y = Gemm<transB = 1>(x, w) }"


def test_the_machine_decides_the_activation_type() -> None:
    assert TARGET.activation_dtype == "uint8"
    arm = Target.load("ort-cpu", "arm64")
    assert arm.activation_dtype == "int8"
    assert arm.find("Conv", "static")[0].activation == ("int8",)
    assert arm.find("MatMul", "dynamic")[0].activation == ("uint8", "int8", "int4")
    assert [Target.load("ort-cpu", isa).saturates for isa in ("x86-64", "x86-64+vnni", "arm64")] == [True, False, False]


def test_unknown_targets_and_machines() -> None:
    with pytest.raises(BadRequest, match="Did you mean 'ort-cpu'"):
        Target.load("ort-cpus")
    with pytest.raises(BadRequest, match="does not know the machine 'vax'"):
        Target.load("ort-cpu", "vax")


def _why(source: str, schemes: dict[Site, Scheme]) -> str | None:
    model = kit.parse(source)
    weight = model.graph.inputs.pop()
    assert weight.shape is not None
    weight.const_value = ir.tensor(np.zeros(weight.shape.numpy(), np.float32), name=weight.name)
    model.graph.register_initializer(weight)
    return TARGET.allows(edit.find(model, "op"), schemes)


@pytest.mark.parametrize(
    ("source", "schemes", "why"),
    [
        (CONV, {X: U8, W: Scheme("int8", per_channel(0)), Y: U8}, None),
        (CONV, {X: U8, W: Scheme("int4", per_channel(0)), Y: U8}, None),
        (CONV, {X: U8, W: Scheme("int8", per_channel(0))}, "no trailing Q"),
        (CONV, {X: U8, W: Scheme("int8", per_channel(1)), Y: U8}, "wants axis 0"),
        (CONV, {X: U8, W: Scheme("int8", per_channel(0), symmetric=False), Y: U8}, None),
        (CONV, {X: Scheme("int8"), W: Scheme("int8"), Y: U8}, "input 0 is int8, QLinearConv takes uint8"),
        (CONV, {X: U8, Y: U8}, "input 1 stays float"),
        (CONV, {W: Scheme("int8", per_channel(0)), Y: U8}, "input 0 stays float"),
        (CONV, {X: DYNAMIC, W: Scheme("int8", per_channel(0))}, "no dynamic kernel for Conv"),
        (CONV, {W: Scheme("int4", per_channel(0))}, None),
        (CONV, {}, "nothing of it is quantized"),
        (MATMUL, {X: U8, W: Scheme("int8", per_channel(1))}, None),
        (MATMUL, {X: DYNAMIC, W: Scheme("int8", per_channel(-1))}, None),
        (MATMUL, {X: TOKEN, W: Scheme("int8", PER_TENSOR)}, None),
        (MATMUL, {X: TOKEN, W: Scheme("int4", per_group(0, 32))}, None),
        (MATMUL, {X: DYNAMIC, W: Scheme("int2", per_group(0, 16))}, "weights are"),
        (MATMUL, {W: Scheme("int4", per_group(0, 64), symmetric=False)}, None),
        (GEMM, {X: DYNAMIC, W: Scheme("int8", per_channel(0))}, None),
        (GEMM, {X: U8, W: Scheme("int8", per_channel(0))}, None),
    ],
)
def test_allows(source: str, schemes: dict[Site, Scheme], why: str | None) -> None:
    found = _why(source, schemes)
    assert found is None if why is None else found is not None and why in found


def test_readers_that_quantize_make_the_trailing_quantizer() -> None:
    model = kit.parse("g (float[4,8] x) => (float[4,8] z) { [op] y = Sigmoid(x) [next] z = Add(y, y) }")
    mine = {X: U8}
    readers = {Site("next", s, Role.ACTIVATION): U8 for s in (0, 1)}
    assert TARGET.allows(edit.find(model, "op"), mine | readers) is None
    assert "trailing" in str(TARGET.allows(edit.find(model, "op"), mine | {Site("next", 0, Role.ACTIVATION): U8}))


def test_what_has_no_kernel_is_absent() -> None:
    for op in ("ConvTranspose", "Sub", "Tanh", "LayerNormalization", "Nonsense"):
        assert TARGET.find(op, "static") == ()
    assert {c.kernel for c in TARGET.find("ConvTranspose", "weight")} == {""}
    assert TARGET.find("GRU", "dynamic") == ()
