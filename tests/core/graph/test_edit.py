"""The verbs keep public names, see subgraphs, and never reuse a name."""

import gc
import itertools
import weakref

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


def bodies(model: ir.Model) -> dict[str, ir.Graph]:
    return {g.name or "": g for g in edit.graphs(model) if isinstance(g, ir.Graph)}


NESTED = """
g (bool c, float[4] x) => (float[4] y) {
  h = Neg(x)
  y = If (c) <
    then_branch = t () => (float[4] a) {
      a = If (c) <
        then_branch = tt () => (float[4] p) { p = Constant <value = float[4] {1, 2, 3, 4}> () },
        else_branch = te () => (float[4] q) { q = Abs(h) }
      >
    },
    else_branch = e () => (float[4] b) { b = Constant <value = float[4] {1, 2, 3, 4}> () }
  >
}
"""


def test_walking_a_model_writes_nothing_into_it() -> None:
    model = kit.parse(NESTED)
    kept = {name: g.meta for name, g in bodies(model).items()}
    assert list(kept) == ["g", "t", "e", "tt", "te"]
    assert not any(kept.values())
    list(edit.nodes(model))
    edit.find(model, "Neg_0")
    verify.check(model)
    assert not any(kept.values())


@pytest.mark.parametrize("order", list(itertools.permutations(["g", "t", "e", "tt", "te"], 3)))
def test_names_are_taken_for_all_graphs_whoever_asks_first(order: tuple[str, ...]) -> None:
    model = kit.parse(NESTED)
    edit.index(model)
    found = bodies(model)
    assert [edit.fresh_name(found[name], "h") for name in order] == ["h_1", "h_2", "h_3"]
    assert edit.fresh_name(model, "p") == "p_1"  # a value of the innermost body


@pytest.mark.parametrize("name", ["t", "te"])
def test_a_body_that_was_never_indexed_is_known_by_what_it_reads(name: str) -> None:
    model = kit.parse(NESTED)
    assert edit.fresh_name(bodies(model)[name], "b") == "b_1"  # a name of the other branch
    assert edit.fresh_name(model, "b") == "b_2"


def test_a_copy_has_names_of_its_own_and_does_not_keep_the_first_alive() -> None:
    model = kit.parse(NESTED)
    edit.index(model)
    assert edit.fresh_name(model, "h") == "h_1"
    copy = model.clone()
    edit.index(copy)
    assert [edit.fresh_name(copy, "h"), edit.fresh_name(model, "h")] == ["h_1", "h_2"]
    gone = weakref.ref(model.graph)
    del model
    gc.collect()
    assert gone() is None
    assert edit.fresh_name(bodies(copy)["tt"], "h") == "h_2"


def test_a_body_that_is_brought_in_shares_the_names() -> None:
    model = kit.parse(BRANCHES)
    edit.index(model)
    assert edit.fresh_name(model, "k") == "k"
    body = kit.parse("z () => (float[4] k2) { k2 = Constant <value = float[4] {1, 2, 3, 4}> () }").graph
    (cond,), last = model.graph.inputs[:1], list(model.graph)[-1]
    edit.new_node("If", [cond], {"then_branch": body, "else_branch": body.clone()}, after=last)
    assert edit.fresh_name(body, "h") == "h_1"
    assert edit.fresh_name(model, "k2") == "k2_1"


def test_functions_have_names_of_their_own() -> None:
    model = kit.parse(CHAIN)
    function = ir.Function("d", "f", graph=kit.parse(CHAIN).graph.clone(), attributes=[])
    model.functions[function.identifier()] = function
    edit.index(model)
    assert edit.fresh_name(model, "h") == edit.fresh_name(function, "h") == "h_1"
    assert edit.fresh_name(next(iter(function)).graph, "h") == "h_2"  # the graph inside the function is the same place


def test_what_supersedes_a_node_keeps_its_name_its_notes_and_its_public_output() -> None:
    model = kit.parse(CHAIN)
    edit.index(model)
    relu = edit.find(model, "Relu_1")
    relu.metadata_props["mine"] = "1"
    first = edit.new_node("Abs", relu.inputs, before=relu, origin=relu)
    second = edit.new_node("Neg", first.outputs, before=relu, origin=relu)
    assert edit.supersede(relu, second.outputs) == [model.graph[0].outputs[0]]
    verify.check(model)
    assert kit.ops(model) == ["Add", "Abs", "Neg"]
    assert (second.name, second.metadata_props["mine"]) == ("Relu_1", "1")
    assert "mine" not in first.metadata_props
    assert model.graph.outputs[0] is second.outputs[0] and second.outputs[0].name == "y"
    assert second.outputs[0].dtype == ir.DataType.FLOAT


def test_what_stands_for_a_value_has_its_name_and_a_public_one_stays_public() -> None:
    model = kit.parse("g (float[4] x) => (float[4] y) { a = Abs(x)  y = Neg(a) }")
    edit.index(model)
    a, y = (n.outputs[0] for n in model.graph)
    made = edit.new_node("Exp", [a], after=model.graph[0]).outputs[0]
    edit.stand_for(a, made, "bare")
    edit.set_input(made.producer(), 0, a)
    assert (a.name, made.name) == ("a_bare", "a") and model.graph[-1].inputs[0] is made
    twice = edit.new_node("Add", [y, y], after=model.graph[-1]).outputs[0]
    edit.stand_for(y, edit.like(twice, y))
    assert model.graph.outputs[0] is twice and (twice.name, y.name) == ("y", "y_old")
    verify.check(model)


def test_of_several_outputs_those_that_nothing_reads_need_no_heir() -> None:
    model = kit.parse("g (float[4] x) => (float[2] y) { a, b = Split <num_outputs = 2> (x) y = Neg(b) }")
    edit.index(model)
    split = edit.find(model, "Split_0")
    split.metadata_props["mine"] = "1"
    made = edit.new_node("Exp", split.inputs, before=split)
    edit.supersede(split, [None, made.outputs[0]], metadata=False)
    verify.check(model)
    assert kit.ops(model) == ["Exp", "Neg"]
    assert made.name == "Split_0" and "mine" not in made.metadata_props
