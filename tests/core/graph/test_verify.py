"""Each structural rule is broken once, also inside subgraphs; sound models of every kind pass."""

from pathlib import Path

import onnx_ir as ir
import pytest

from graphpress.errors import VerifyError
from graphpress.graph import edit, verify
from tests import kit
from tests.core.graph.test_edit import BRANCHES, CHAIN


def break_order(m: ir.Model) -> None:
    node = edit.find(m, "Add_0")
    m.graph.remove(node)
    m.graph.append(node)


def break_scope(m: ir.Model) -> None:
    inner = next(n for n in edit.nodes(m) if n.op_type == "Sqrt")
    next(n for n in edit.nodes(m) if n.op_type == "Abs").replace_input_with(0, inner.outputs[0])


def break_initializer(m: ir.Model) -> None:
    m.graph.initializers["w"].const_value = None


def break_output(m: ir.Model) -> None:
    m.graph.outputs[0] = ir.Value(name="ghost")


@pytest.mark.parametrize(
    ("source", "damage", "says"),
    [
        (CHAIN, break_order, "not defined before"),
        (BRANCHES, break_scope, "not defined before it in its scope"),
        (CHAIN, break_initializer, "has no tensor"),
        (CHAIN, break_output, "produced by no node"),
        (CHAIN, lambda m: setattr(edit.find(m, "Relu_1").outputs[0], "name", "h"), "defined twice"),
        (CHAIN, lambda m: setattr(edit.find(m, "Relu_1"), "name", "Add_0"), "two nodes have this name"),
        (
            BRANCHES,
            lambda m: setattr(edit.find(m, "Neg_0"), "name", next(n for n in edit.nodes(m) if n.op_type == "Exp").name),
            "two nodes",
        ),
        (CHAIN, lambda m: setattr(edit.find(m, "Relu_1"), "name", ""), "has no name"),
        (CHAIN, lambda m: setattr(edit.find(m, "Relu_1"), "domain", "acme"), "no opset is imported for domain 'acme'"),
    ],
)
def test_broken_graphs_are_named(source: str, damage, says: str) -> None:
    model = kit.parse(source)
    verify.check(model)
    damage(model)
    with pytest.raises(VerifyError, match=says):
        verify.check(model)


def test_unknown_dialect_operators_are_refused() -> None:
    model = kit.parse(
        '<ir_version: 10, opset_import: ["": 21, "graphpress": 1]> '
        "g (float[4] x) => (float[4] y) { y = graphpress.BitLinear <bits=99> (x) }"
    )
    with pytest.raises(VerifyError, match="BitLinear is not an operator of the dialect"):
        verify.check(model)


def test_failure_shows_the_place() -> None:
    model = kit.parse(CHAIN)
    break_order(model)
    with pytest.raises(VerifyError) as e:
        verify.check(model)
    assert any("> " in n and "Relu" in n for n in e.value.__notes__)


def test_shadowing_an_outer_value_is_found() -> None:
    model = kit.parse(BRANCHES)
    next(n for n in edit.nodes(model) if n.op_type == "Sqrt").outputs[0].name = "h"
    with pytest.raises(VerifyError, match="defined twice"):
        verify.check(model)


@pytest.mark.parametrize(
    "name", ["cifar10/resnet20.onnx", "speech/silero_vad/silero_vad_16k_op15.onnx", "llm/codelm/codelm.onnx"]
)
def test_real_models_pass(zoo: Path, name: str) -> None:
    from graphpress.frontends import onnx_file

    verify.check(onnx_file.load(zoo / name))
