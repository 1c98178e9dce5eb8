"""Values are told apart by what they are, not by what they are called; every rule once in every kind of scope."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from graphpress.errors import VerifyError
from graphpress.graph import edit, verify
from graphpress.keys import SPARSITY
from tests import kit

CHAIN = "g (float[4] x, float[4] w) => (float[4] y) { [a] h = Add(x, w) [r] y = Relu(h) }"
IF = """g (float[4] x, bool c) => (float[4] y) {
    [a] h = Abs(x)
    [if] y = If (c) <then_branch = t () => (float[4] p) { [n] p = Neg(h) },
                     else_branch = e () => (float[4] q) { [s] q = Sqrt(x) [u] q2 = Exp(q) }>
}"""
FUNCTION = """<ir_version: 10, opset_import: ["": 21, "acme": 1]>
g (float[4] x) => (float[4] y) { [call] y = acme.Twice(x) }
<domain: "acme", opset_import: ["": 21]>
Twice (x) => (y) { [one] h = Neg(x) [two] y = Neg(h) }"""


def refused(model: ir.Model, says: str) -> None:
    with pytest.raises(VerifyError, match=says):
        verify.check(model)


def test_a_value_of_the_same_name_is_another_value() -> None:
    model = kit.parse(CHAIN)
    edit.find(model, "r").replace_input_with(0, ir.Value(name="h"))
    refused(model, r"input 0 \('h'\) is not defined before it")
    model = kit.parse(CHAIN)
    model.graph.outputs[0] = ir.Value(name="y")
    refused(model, "'y' of graph 'g' is produced by no node")
    model = kit.parse(IF)
    edit.find(model, "n").replace_input_with(0, ir.Value(name="h"))
    refused(model, "not defined before it")


def test_an_output_that_lives_in_a_branch_is_none_of_the_graph() -> None:
    model = kit.parse(IF)
    model.graph.outputs[0] = edit.find(model, "u").outputs[0]
    refused(model, "produced by no node")


def test_a_value_of_one_branch_is_not_seen_in_the_other_nor_later() -> None:
    model = kit.parse(IF)
    edit.find(model, "s").replace_input_with(0, edit.find(model, "n").outputs[0])
    refused(model, "not defined before it")


def test_one_node_under_two_names_is_fine_and_two_under_one_are_not() -> None:
    verify.check(kit.parse(IF))
    model = kit.parse(IF)
    edit.find(model, "u").name = "n"
    refused(model, "two nodes have this name")


def test_functions_are_checked_with_names_and_scopes_of_their_own() -> None:
    model = kit.parse(FUNCTION)
    verify.check(model)
    (function,) = model.functions.values()
    one, two = list(function)
    two.name = "call"  # of another scope
    verify.check(model)
    two.name = "one"
    refused(model, "two nodes have this name")
    two.name = "two"
    two.replace_input_with(0, ir.Value(name="h"))
    refused(model, "not defined before it")
    two.replace_input_with(0, model.graph.inputs[0])
    refused(model, "not defined before it")
    two.replace_input_with(0, one.outputs[0])
    two.domain = "elsewhere"
    refused(model, "no opset is imported for domain 'elsewhere'")


def test_a_function_may_import_a_domain_that_the_model_does_not() -> None:
    model = kit.parse(FUNCTION)
    (function,) = model.functions.values()
    function.opset_imports["elsewhere"] = 1
    list(function)[1].domain = "elsewhere"
    verify.check(model)
    edit.find(model, "call").domain = "elsewhere"  # the model itself does not
    refused(model, "no opset is imported")


def test_a_call_needs_no_import_where_the_function_is_there() -> None:
    model = kit.parse(FUNCTION)
    del model.opset_imports["acme"]
    verify.check(model)


def test_a_node_says_which_graph_it_is_of() -> None:
    model, other = kit.parse(CHAIN), kit.parse(CHAIN)
    node = edit.find(model, "r")
    node._graph = other.graph  # what an edit beside our verbs can leave
    refused(model, "belongs to another graph")


def test_what_nobody_reads_needs_no_name_and_what_is_read_does() -> None:
    model = kit.parse("g (float[1, 4] x) => (float[1, 4] y) { y, m = Dropout(x) }")
    mask = next(iter(model.graph)).outputs[1]
    mask.name = ""
    verify.check(model)
    model.graph.outputs.append(mask)
    refused(model, "a value in use has no name")
    model = kit.parse(CHAIN)
    edit.find(model, "a").outputs[0].name = None
    refused(model, "a value in use has no name")


def test_initializers_go_by_their_names() -> None:
    def constants() -> ir.Model:
        return kit.parse("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }")

    model = constants()
    verify.check(model)
    model.graph.initializers["w"]._name = "v"  # what an edit beside our verbs can leave
    refused(model, "'v' is registered as 'w'")
    model = constants()
    model.graph.inputs.append(model.graph.initializers["w"])  # a default that a caller may override: defined once
    verify.check(model)
    model = constants()
    model.graph.initializers["w"].const_value = None
    refused(model, "'w' has no tensor")


def test_a_layer_that_says_it_has_a_pattern_is_held_to_it() -> None:
    source = "g (float[1, 4] x) => (float[1, 1] y) <float[4, 1] w = {1, 2, 0, 0}> { [m] y = MatMul(x, w) }"
    model = kit.parse(source)
    edit.find(model, "m").metadata_props[SPARSITY] = "2:4"
    verify.check(model)
    model = kit.parse(source.replace("2, 0, 0", "2, 3, 0"))
    verify.check(model)  # it says nothing
    edit.find(model, "m").metadata_props[SPARSITY] = "2:4"
    refused(model, "no longer the pattern 2:4 along axis 0")


def test_two_values_of_one_name_are_found_wherever_the_second_is() -> None:
    for source, node in ((CHAIN, "a"), (IF, "n"), (IF, "s"), (IF, "u"), (IF, "a")):
        model = kit.parse(source)
        edit.find(model, node).outputs[0].name = "x"
        refused(model, "'x' is defined twice")


def test_a_bad_use_of_an_operator_of_the_dialect_is_refused_with_its_rule() -> None:
    head = '<ir_version: 10, opset_import: ["": 21, "graphpress": 1]> '
    good = "g (float[2, 4] x) => (int8[2, 4] q, float[2, 1] s) { [t] q, s = graphpress.DynamicQuantizeToken(x) }"
    verify.check(kit.parse(head + good))
    bad = good.replace("Token(x)", "Token<bits = 99>(x)")
    refused(kit.parse(head + bad), "2 to 8 bits, not 99")
    refused(kit.parse(head + good.replace("Token(x)", "Tokn(x)")), "DynamicQuantizeTokn is not an operator")
