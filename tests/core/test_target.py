"""Targets: data loaded for a machine, and plans checked against it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphpress import shipped
from graphpress.capability import AttributeIs, GroupSizes, InputIs
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


def table(**changed: object) -> dict[str, object]:
    """A small target as its file has it."""
    conv = {"op": "Conv", "mode": "static", "kernel": "QLinearConv", "activation": ["native"], "weight": ["int8"]}
    given = {
        "runtime": "ort", "provider": "CPUExecutionProvider", "probed_with": "1.0", "opsets": [13, 21],
        "activation_dtype": {"x86-64": "uint8"}, "weight_only_accuracy_level": 0, "capabilities": [conv],
    }  # fmt: skip
    return given | changed


def capability(**changed: object) -> dict[str, object]:
    conv = {"op": "Conv", "mode": "static", "kernel": "QLinearConv", "activation": ["uint8"], "weight": ["int8"]}
    return table(capabilities=[conv | changed])


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(capability(conditions=["attr:group==1", "absent:2", "constant:1", "group_size:16,32"])))
    mine = Target.load(str(path), "x86-64")
    assert (mine.name, mine.activation_dtype, mine.exact_codes, mine.facts) == ("mine", "uint8", None, frozenset())
    (conv,) = mine.find("Conv", "static")
    assert conv.conditions == (
        AttributeIs("group", "1"), InputIs("absent", 2), InputIs("constant", 1), GroupSizes((16, 32)),
    )  # fmt: skip
    assert [str(c) for c in conv.conditions] == ["attr:group==1", "absent:2", "constant:1", "group_size:16,32"]
    path.write_text(json.dumps(table(provider="Another")))  # read anew when it changes
    assert Target.load(path, "x86-64").provider == "Another"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (capability(conditions=["groupsize:16"]), "capability Conv static QLinearConv: condition 'groupsize:16'"),
        (capability(conditions=["group_size:16,x"]), "is no condition"),
        (capability(conditions=["absent:two"]), "is no condition"),
        (capability(conditions=["attr:transB=1"]), "is no condition"),
        (capability(mode="statik"), "mode is 'statik', not one of static, dynamic, weight"),
        (capability(output="maybe"), "output is 'maybe'"),
        (capability(activation="uint8"), "activation is 'uint8', not a list of words"),
        (capability(weight=["int9"]), "int9, which is no storage type"),
        (capability(weight_slots=["1"]), "not a list of numbers"),
        (capability(wieght=["int8"]), "has no field wieght"),
        (table(capabilities=[{"op": "Conv"}]), "lacks kernel, mode"),
        (table(capabilities=["Conv"]), "not a JSON object"),
        (table(runtime="onnx"), "runtime is 'onnx', not one of ort, fx"),
        (table(opsets=[21, 13]), r"not \[first, last\]"),
        (table(facts={"slow-casual-mask": ["arm64"]}), "Did you mean 'slow-causal-mask'"),
        (table(facts={"slow-causal-mask": ["vax"]}), "'vax' is no machine"),
        (table(exact_codes={"vax": 64}), "'vax' is no machine"),
        (table(kernel=["MatMulNBits"]), "Did you mean 'kernels'"),
        (table(wide_moves=["Transpos"]), "names 'Transpos', which moves no data. Did you mean 'Transpose'"),
        (table(provider=1), "provider is 1, not a JSON str"),
        ({}, "lacks 'runtime'"),
        ([], "is no JSON object"),
    ],
)
def test_a_wrong_file_is_refused_where_it_is_wrong(data: object, what: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(data))
    with pytest.raises(BadRequest, match=what) as e:
        Target.load(str(path), "x86-64")
    assert "mine.json" in str(e.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="cannot be read: No such file"):
        Target.load(str(tmp_path / "missing.json"))
    (tmp_path / "broken.json").write_text('{"runtime": "ort",\n')
    with pytest.raises(BadRequest, match=r"is no JSON: .* in line 2"):
        Target.load(str(tmp_path / "broken.json"))


@pytest.mark.parametrize("name", shipped.targets())
def test_shipped_targets_load_for_every_machine_that_they_know(name: str) -> None:
    for isa in json.loads(shipped.targets()[name])["activation_dtype"]:
        target = Target.load(name, isa)
        assert target.capabilities and target.package
        assert target.activation_dtype in ("uint8", "int8")


def test_a_changed_copy_has_a_table_of_its_own() -> None:
    assert TARGET.find("Conv", "static")
    assert dataclasses.replace(TARGET, capabilities=()).find("Conv", "static") == ()
