"""A call replaced by the body of its function gives the same numbers; names of a body never meet those around it."""

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.errors import Unsupported
from graphpress.graph import edit, inline, names, verify
from tests import kit


def _model(body: str, call: str = "y = local.F(c)", opset: int = 18, own: int = 18) -> ir.Model:
    return kit.parse(f"""<ir_version: 8, opset_import: ["": {opset}, "local": 1]>
        g (float[2,3] x) => (float[2,3] y) {{ c = Relu(x) {call} }}
        <domain: "local", opset_import: ["": {own}]> F (a) => (o) {{ {body} }}""")


def _inlined(model: ir.Model) -> ir.Model:
    result = model.clone()
    inline.inline(result, lambda f: True)
    verify.check(result)
    assert not result.functions
    kit.assert_same_outputs(model, result)
    return result


def test_names_of_a_body_are_its_own() -> None:
    result = _inlined(_model("c = Neg(a) x = Abs(c) o = Sqrt(x)"))
    values = [o.name for n in result.graph for o in n.outputs]
    assert len(set(values)) == 4 and values[0] == "c"


def test_two_calls() -> None:
    result = _inlined(_model("c = Neg(a) o = Abs(c)", "d = local.F(c) y = local.F(d)"))
    assert [n.op_type for n in result.graph] == ["Relu", "Neg", "Abs", "Neg", "Abs"]


def test_a_body_with_branches_that_use_the_names_around() -> None:
    body = """k = Constant <value = bool {1}> ()
        o = If (k) <then_branch = t () => (float[2,3] c) { c = Neg(a) },
                    else_branch = e () => (float[2,3] c) { c = Abs(a) }>"""
    result = _inlined(_model(body))
    found = [o.name for g in edit.graphs(result) for n in g for o in n.outputs]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(("opset", "own"), [(18, 13), (13, 18)])
def test_another_opset_where_the_body_means_the_same(opset: int, own: int) -> None:
    result = _inlined(_model("o = Softmax <axis = 0> (a)", opset=opset, own=own))
    assert edit.opset(result) == opset


@pytest.mark.parametrize(("opset", "own"), [(18, 11), (11, 18)])
def test_another_opset_where_it_does_not_is_refused(opset: int, own: int) -> None:
    """Up to opset 12 Softmax works on a matrix. ONNX Runtime takes the model's opset for the body, ONNX the body's."""
    model = _model("o = Softmax <axis = 0> (a)", opset=opset, own=own)
    with pytest.raises(
        Unsupported, match=rf"body is of opset {own}, the model of {opset}, and Softmax .* at one opset"
    ):
        inline.inline(model, lambda f: True)
    assert len(model.functions) == 1


def test_versions_of_another_domain_that_differ_are_refused() -> None:
    model = kit.parse("""<ir_version: 8, opset_import: ["": 18, "local": 1, "ai.onnx.ml": 2]>
        g (float[2,3] x) => (float[2,3] y) { y = local.F(x) }
        <domain: "local", opset_import: ["ai.onnx.ml": 3]> F (a) => (o) {
            o = ai.onnx.ml.Scaler <offset = [1.0], scale = [2.0]> (a) }""")
    with pytest.raises(Unsupported, match=r"version 3 of 'ai.onnx.ml', and the model version 2"):
        inline.inline(model, lambda f: True)
    assert len(model.functions) == 1


def test_values_of_two_branches_get_names_of_their_own() -> None:
    model = kit.parse("""g (bool k, float[2] x) => (float[2] y) {
        y = If (k) <then_branch = t () => (float[2] c) { c = Neg(x) },
                    else_branch = e () => (float[2] c) { c = Abs(x) }>
    }""")
    names.unique_values(model)
    found = [o.name for g in edit.graphs(model) for n in g for o in n.outputs]
    assert len(set(found)) == 3
    assert kit.run(model, {"k": np.array(False), "x": np.float32([-1, 2])})["y"].tolist() == [1, 2]
