"""ACMs lowered to stock operators: the same numbers, and no learner runs for a token that does not take it."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.backends import reference
from graphpress.backends.ort import lower, session
from graphpress.graph import edit
from graphpress.ops.acm_price import EVERY
from graphpress.passes.acm.quantize_learners import QuantizeLearners
from graphpress.passes.fold.fold_weights import FoldWeights
from graphpress.target import Target
from tests import kit
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
        np.testing.assert_allclose(out["y"], y, rtol=0, atol=3e-5)


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


def test_computed_weights_stay_as_they_are() -> None:
    model = op_model()
    node = acm_node(model)
    doubled = edit.new_node("Add", [node.inputs[4], node.inputs[4]], before=node)
    edit.like(doubled.outputs[0], node.inputs[4])
    edit.set_input(node, 4, doubled.outputs[0])
    made = lower(model, TARGET)
    assert [n.op_type for n in made.graph if n.domain == "graphpress"] == ["ACM"]
    kit.assert_same_outputs(model, made, feeds(tokens(1, 3), 0.3))
