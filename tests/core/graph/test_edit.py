"""The verbs keep public names, see subgraphs, and never reuse a name."""

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.errors import StaleSite
from graphpress.graph import edit, verify
from tests import kit

CHAIN = """
g (float[N,4] x) => (float[N,4] y) <float[4] w = {1, 2, 3, 4}> { h = Add(x, w)  y = Relu(h) }
"""
BRANCHES = """
g (bool c, float[4] x) => (float[4] y) {
  h = Neg(x)
  y = If (c) <
    then_branch = t () => (float[4] a) { a = Abs(h) },
    else_branch = e () => (float[4] b) { i = Sqrt(x) b = Exp(i) }
  >
}
"""


def test_replacing_a_graph_output_keeps_its_name() -> None:
    model = kit.parse(CHAIN)
    relu = edit.find(model, "Relu_1")
    edit.replace(relu.outputs[0], relu.inputs[0])
    edit.remove([relu])
    verify.check(model)
    kit.assert_same_structure(
        model, kit.parse("g (float[N,4] x) => (float[N,4] y) <float[4] w = {1,2,3,4}> { y = Add(x, w) }")
    )
    assert model.graph.outputs[0].name == "y" and model.graph.outputs[0].dtype == ir.DataType.FLOAT


def test_an_output_that_becomes_an_input_is_carried_by_identity() -> None:
    model = kit.parse("g (float[4] x) => (float[4] y) { y = Relu(x) }")
    relu = edit.find(model, "Relu_0")
    edit.replace(relu.outputs[0], model.graph.inputs[0])
    edit.remove([relu])
    verify.check(model)
    assert kit.ops(model) == ["Identity"] and model.graph.outputs[0].name == "y"


def test_uses_in_subgraphs_are_replaced() -> None:
    model = kit.parse(BRANCHES)
    neg = edit.find(model, "Neg_0")
    edit.replace(neg.outputs[0], model.graph.inputs[1])
    edit.remove([neg])
    verify.check(model)
    assert "Neg" not in kit.ops(model)


def test_fresh_names_are_unique_over_all_graphs() -> None:
    model = kit.parse(BRANCHES)
    then = next(g for g in edit.graphs(model) if g.name == "t")
    assert edit.fresh_name(then, "i") == "i_1" == edit.fresh_name(model.clone(), "i")
    assert edit.fresh_name(model, "i") == "i_2"


def test_new_nodes_say_what_they_were_made_for() -> None:
    model = kit.parse(CHAIN)
    add = edit.find(model, "Add_0")
    first = edit.new_node("Abs", [add.outputs[0]], after=add, origin=add)
    second = edit.new_node("Neg", [first.outputs[0]], after=first, origin=first)
    assert [n.metadata_props["graphpress.from"] for n in (first, second)] == ["Add_0", "Add_0"]


def test_constants_never_include_what_a_caller_can_override() -> None:
    model = kit.parse(
        "g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> "
        "{ k = Constant <value = float[2] {3, 4}> () h = Add(x, w) y = Mul(h, k) }"
    )
    add, mul = edit.find(model, "Add_1"), edit.find(model, "Mul_2")
    assert edit.constant(add.inputs[1]) is None
    np.testing.assert_array_equal(edit.constant(mul.inputs[1]), [3, 4])


def test_remove_unused_climbs() -> None:
    model = kit.parse(CHAIN.replace("(float[N,4] y) <", "(float[N,4] y) <").replace("y = Relu(h)", "y = Relu(x)"))
    edit.remove_unused([edit.find(model, "Add_0").outputs[0]])
    assert kit.ops(model) == ["Relu"] and not model.graph.initializers


def test_remove_unused_passes_over_absent_inputs() -> None:
    model = kit.parse("g (float[4] x) => (float[4] y) <float hi = {6}> { h = Clip(x, , hi) y = Relu(x) }")
    edit.remove_unused([edit.find(model, "Clip_0").outputs[0]])
    assert kit.ops(model) == ["Relu"] and not model.graph.initializers


def test_find_offers_the_nearest_name() -> None:
    with pytest.raises(StaleSite, match="Did you mean 'Relu_1'"):
        edit.find(kit.parse(CHAIN), "Relu_2")


def test_what_a_node_reads_through_its_bodies() -> None:
    model = kit.parse(BRANCHES)
    branch = next(n for n in model.graph if n.op_type == "If")
    assert [v.name for v in edit.reads(branch)] == ["c", "h", "x"]
