"""ACMs lowered to stock operators: the same numbers, and no learner runs for a token that does not take it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.backends import reference
from graphpress.backends.ort import lower, session
from graphpress.backends.ort.emit import Shared
from graphpress.backends.ort.rules import lower_acm
from graphpress.graph import edit
from graphpress.ops.acm_price import EVERY
from graphpress.passes.acm.quantize_learners import QuantizeLearners
from graphpress.passes.fold.fold_weights import FoldWeights
from graphpress.target import Target
from tests import kit
from tests.passes import acm_models
from tests.passes.acm_models import ACTS, LEARNERS, acm_node, by_definition, feeds, op_model, tokens

TARGET = Target.load("ort-cpu")
FORMS = [(a, i % 2, least) for i, (a, least) in enumerate(itertools.product(ACTS, (0, 1, 2, LEARNERS)))]


def lowered(model: ir.Model) -> ir.Model:
    made = lower(model, TARGET)
    assert not [n for n in made.graph if n.op_type == "ACM"]
    return made


@pytest.mark.parametrize(("activation", "gated", "least"), FORMS)
def test_means_what_the_definition_means(activation: str, gated: int, least: int) -> None:
    model = op_model(activation, gated, least)
    run = session.execute(lowered(model))
    for price in (EVERY, 0.3, -EVERY):
        x = tokens(2, 9)
        y, learners = by_definition(acm_node(model), x, price)
        out = run(feeds(x, price))
        np.testing.assert_array_equal(out["k"], learners)
        np.testing.assert_allclose(out["y"], y, rtol=0, atol=1e-6 * max(30, np.abs(y).max()))


@pytest.mark.parametrize("shape", [(2, 0), (0, 3), (1, 1)])
@pytest.mark.parametrize("least", [0, 1])
@pytest.mark.parametrize("optimise", [False, True])
def test_no_token_and_one_token(shape: tuple[int, int], least: int, optimise: bool) -> None:
    model = op_model(least=least)
    run = (session if optimise else reference).execute(lowered(model))
    for price in (EVERY, 0.3, -EVERY):
        x = tokens(*shape)
        y, learners = by_definition(acm_node(model), x, price)
        out = run(feeds(x, price))
        assert out["y"].shape == (*shape, 5)
        np.testing.assert_array_equal(out["k"], learners)
        np.testing.assert_allclose(out["y"], y.reshape(*shape, 5), rtol=0, atol=3e-5)


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_eight_bit_learners_use_integer_products(activation: str) -> None:
    """As the body with the same codes; weights on the grid, so that only the rows of activations are rounded."""
    model, _ = kit.apply(op_model(activation, 1), QuantizeLearners(), FoldWeights())
    made = lowered(model)
    products = [n for n in made.graph if n.op_type == "MatMulIntegerToFloat"]
    assert len(products) == 3 * LEARNERS
    x = tokens(2, 9)
    want = reference.execute(model)(feeds(x, 0.3))
    got = session.execute(made)(feeds(x, 0.3))
    np.testing.assert_array_equal(got["k"], want["k"])
    np.testing.assert_allclose(got["y"], want["y"], rtol=0, atol=1e-4)
    exact = kit.run(op_model(activation, 1), feeds(x, 0.3))["y"]
    assert 1e-4 < np.abs(want["y"] - exact).max() < 0.05 * np.abs(exact).max()


def test_learners_read_the_leading_rows_only() -> None:
    """Rows that each product saw: as many tokens as take that learner."""
    model = op_model("relu", 0)
    made = lowered(model)
    second = [n.inputs[0] for n in made.graph if n.op_type == "MatMul" and n.outputs[0].uses()]
    hidden = {
        v.name: v for v in second if v is not None and v.producer() is not None and v.producer().op_type == "Relu"
    }
    x = tokens(3, 7)
    _, learners = by_definition(acm_node(model), x, 0.3)
    seen = reference.execute(made, hidden)(feeds(x, 0.3))
    rows = sorted((len(a) for a in seen.values()), reverse=True)
    assert rows == [int((learners > j).sum()) for j in range(LEARNERS)]
    assert 0 < rows[-1] < rows[0]


def left(model: ir.Model, target: Target = TARGET) -> bool:
    """Whether its ACM is still there, and gives what it gave."""
    made = lower(model, target)
    there = [n.op_type for n in made.graph if n.domain == "graphpress"] == ["ACM"]
    kit.assert_same_outputs(model, made, feeds(tokens(1, 3), 0.3), atol=0 if there else 1e-4)
    return there


@pytest.mark.parametrize("slot", [1, 2, 4, 5, 6, 7])
def test_computed_weights_stay_as_they_are(slot: int) -> None:
    model = op_model()
    node = acm_node(model)
    doubled = edit.new_node("Add", [node.inputs[slot], node.inputs[slot]], before=node)
    edit.like(doubled.outputs[0], node.inputs[slot])
    edit.set_input(node, slot, doubled.outputs[0])
    assert left(model)


def eight_bit() -> ir.Model:
    return kit.apply(op_model("relu", 1), QuantizeLearners(), FoldWeights())[0]


def test_a_target_without_the_kernel_of_integers_lowers_learners_of_floats_only() -> None:
    target = replace(TARGET, kernels=TARGET.kernels - {"MatMulIntegerToFloat"})
    assert left(eight_bit(), target) and not left(op_model(), target)


def test_learners_of_integers_that_hold_floats_stay() -> None:
    assert left(op_model(int8=1)) and not left(op_model(int8=0))
    for slot in (4, 6):  # codes in one weight, floats in the other
        model = eight_bit()
        node = acm_node(model)
        edit.set_constant(node, slot, edit.constant(acm_node(op_model("relu", 1)).inputs[slot]), "floats")
        assert left(model)


def test_codes_of_learners_of_floats_are_floats_again() -> None:
    model = eight_bit()
    acm_node(model).attributes.update({"int8": ir.AttrInt64("int8", 0)})
    assert not left(model)
    assert "MatMulIntegerToFloat" not in {n.op_type for n in lowered(model).graph}


@pytest.mark.parametrize("slot", [4, 6])
@pytest.mark.parametrize("kind", ["zero point", "unsigned", "blocks", "other axis"])
def test_codes_that_the_kernel_has_no_form_for_stay(slot: int, kind: str) -> None:
    """The kernel takes int8 without zero points, and one scale for each column of a learner."""
    model = eight_bit()
    decode = acm_node(model).inputs[slot].producer()
    codes, scale, zero = (np.array(edit.constant(v)) for v in decode.inputs)
    match kind:
        case "zero point":
            zero[0, 0, 0] = 1
        case "unsigned":
            codes, zero = (codes.astype(np.int16) + 128).astype(np.uint8), np.full(zero.shape, 128, np.uint8)
        case "blocks":
            decode.attributes.update({"block_size": ir.AttrInt64("block_size", codes.shape[1] // 2)})
            scale, zero = scale * [[[1], [0.5]]], zero.repeat(2, 1)
        case "other axis":
            decode.attributes.update({"axis": ir.AttrInt64("axis", 2)})
            decode.attributes.update({"block_size": ir.AttrInt64("block_size", codes.shape[2])})
            scale, zero = scale[:, :, :1].repeat(codes.shape[1], 1), zero[:, :, :1].repeat(codes.shape[1], 1)
    for i, array in enumerate((codes, scale.astype(np.float32), zero)):
        edit.set_constant(decode, i, array, "given")
    decode.outputs[0].dtype = ir.DataType.FLOAT
    assert left(model)


def test_learners_that_nobody_asks_for_are_not_shaped() -> None:
    model, less = op_model(), op_model()
    del less.graph.outputs[1]
    shaped = [[n.op_type for n in lowered(m).graph].count("Reshape") for m in (model, less)]
    assert shaped[0] == shaped[1] + 1


def test_biases_of_zeros_are_not_added() -> None:
    model, bare = op_model("relu", 0, 1), op_model("relu", 0, 1)
    for slot in (5, 7):
        edit.set_constant(acm_node(bare), slot, np.zeros_like(edit.constant(acm_node(bare).inputs[slot])), "zeros")
    added = [[n.op_type for n in lowered(m).graph].count("Add") for m in (model, bare)]
    assert added[0] == added[1] + LEARNERS + 1
    assert not left(bare)


@pytest.mark.parametrize("least", [0, 1])
def test_one_learner_alone(least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acm_models, "LEARNERS", 1)
    assert not left(op_model("relu", 0, least))


def test_learners_that_every_token_takes_are_added_whole() -> None:
    kinds = [n.op_type for n in lowered(op_model("relu", 0, LEARNERS)).graph]
    assert "Slice" not in kinds and kinds.count("Concat") == 1  # of the shape


def test_constants_of_up_to_eight_elements_are_shared() -> None:
    model = op_model()
    node, shared = acm_node(model), Shared()
    one, two = (lower_acm._Emitter(node, model.graph, [], TARGET, shared) for _ in range(2))
    small, large = np.arange(8.0), np.arange(9.0)
    assert one.const(small, "a") is two.const(small.copy(), "b")
    assert one.const(small, "a") is not one.const(small.astype(np.float32), "a")
    assert one.const(large, "c") is not two.const(large, "c")
