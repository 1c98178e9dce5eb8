"""graphpress::ACM and ACMPrice: body, kernel and gradients against the definition, token by token."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphpress.errors import VerifyError
from graphpress.graph import edit, verify
from graphpress.ops.acm import OP
from graphpress.ops.acm_price import EVERY, price_at
from graphpress.ops.acm_price import OP as PRICE
from graphpress.ops.base import DOMAIN, attach
from tests import kit
from tests.passes.acm_models import ACTS, LEARNERS, acm_node, arrays, by_definition, feeds, op_model, tokens

FORMS = [(a, g, least, q) for a in ACTS for g, least, q in ((0, 0, 0), (1, 1, 0), (1, 0, 1))]
PRICES = (EVERY, -1.0, 0.3, 2.0, -EVERY)


def kernel(model, x: np.ndarray, price: float, grad: bool = False):
    """(y, learners) of the torch kernel; with gradients it computes all learners and masks."""
    torch = pytest.importorskip("torch")
    node = acm_node(model)
    gate, gate_bias, *rest = (torch.from_numpy(a.copy()) for a in arrays(node))
    given = [torch.from_numpy(x).requires_grad_(grad), gate, gate_bias, torch.tensor(price), *rest]
    return OP.kernel()(*given, **{k: a.value for k, a in node.attributes.items()})


@pytest.mark.parametrize(("activation", "gated", "least", "int8"), FORMS)
def test_body_and_both_kernels_are_the_definition(activation: str, gated: int, least: int, int8: int) -> None:
    model, x = op_model(activation, gated, least, int8), tokens(2, 9)
    for price in (0.3, -1.0):
        y, learners = by_definition(acm_node(model), x, price)
        assert len(np.unique(learners)) > 2, "the test must see different numbers of learners"
        out = kit.run(model, feeds(x, price))
        np.testing.assert_array_equal(out["k"], learners)
        np.testing.assert_allclose(out["y"], y, rtol=0, atol=1e-6 * max(30, np.abs(y).max()))
        for grad in (False, True):  # ordered; all learners, masked: gated is all, for any gate
            got, taken = kernel(model, x, price, grad)
            np.testing.assert_array_equal(taken, learners)
            np.testing.assert_allclose(got.detach(), y, rtol=0, atol=1e-6 * max(30, np.abs(y).max()))


def test_gated_is_indexing_all_learners() -> None:
    """For random choices, within 1e-5: the last learner of those that take most is not forgotten."""
    torch = pytest.importorskip("torch")
    from graphpress.ops import acm_torch

    acm_torch.register()
    model = op_model("gelu", 0)
    _, _, *rest = (torch.from_numpy(a.copy()) for a in arrays(acm_node(model)))
    w1, b1, w2, b2 = rest
    w1, w2 = w1 / 4, w2 / 4
    x = torch.from_numpy(tokens(3, 40))
    choice = torch.from_numpy(np.random.default_rng(0).integers(0, LEARNERS + 1, (3, 40)))
    form = ("gelu", False, False)
    stacked = torch.stack(acm_torch.prefixes(x, w1, b1, w2, b2, form), -2)
    wanted = torch.take_along_dim(stacked, choice[..., None, None], -2)[..., 0, :]
    got = acm_torch.ordered(x, choice, w1, b1, w2, b2, form)
    assert (choice == LEARNERS).any()
    assert (got - wanted).abs().max() <= 1e-5


@pytest.mark.parametrize("shape", [(2, 0), (0, 3), (2, 1), (0,), (1,)])
@pytest.mark.parametrize("price", PRICES)
def test_no_token_one_token_no_learner_every_learner(shape: tuple[int, ...], price: float) -> None:
    model = op_model()
    if len(shape) == 1:
        model.graph.inputs[0].shape = model.graph.outputs[0].shape = model.graph.outputs[1].shape = None
    x = tokens(*shape)
    y, learners = by_definition(acm_node(model), x, price)
    out = kit.run(model, feeds(x, price))
    got, taken = kernel(model, x, price)
    for a, b in ((out["y"], out["k"]), (got, taken)):
        assert tuple(a.shape) == (*shape, 5)
        np.testing.assert_array_equal(b, learners)
        np.testing.assert_allclose(a, y.reshape(*shape, 5), rtol=0, atol=3e-5)
    if x.size:
        assert set(np.unique(taken)) == {EVERY: {LEARNERS}, -EVERY: {0}}.get(price, set(np.unique(learners)))


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6), st.integers(0, 99))
def test_no_token_takes_more_at_a_higher_price(prices: list[float], seed: int) -> None:
    node, x = acm_node(op_model(seed=seed)), tokens(1, 6, seed=seed)
    taken = [by_definition(node, x, p)[1] for p in sorted(prices)]
    assert all((a >= b).all() for a, b in itertools.pairwise(taken))


def test_gates_get_the_gradient_of_the_task() -> None:
    """Straight through: d y / d score is that of the softmax over h_0 .. h_N, also where the forward is one-hot."""
    torch = pytest.importorskip("torch")
    from graphpress.ops import acm_torch

    model = op_model("relu", 0)
    node = acm_node(model)
    params = [torch.from_numpy(a.copy()).requires_grad_() for a in arrays(node)]
    x = torch.from_numpy(tokens(1, 3))
    price = torch.tensor(0.3)
    y, _ = OP.kernel()(x, *params[:2], price, *params[2:], **{k: a.value for k, a in node.attributes.items()})
    (got,) = torch.autograd.grad(y.square().sum(), params[1], retain_graph=True)
    h = torch.stack(acm_torch.prefixes(x, *params[2:], ("relu", False, False)), -2).detach()
    soft = torch.softmax(acm_torch.scores(x, *params[:2], price), -1)
    (wanted,) = torch.autograd.grad(((soft[..., None] * h).sum(-2) * 2 * y.detach()).sum(), params[1])
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_multiply_adds_count_products() -> None:
    model = op_model("silu", 1)
    node = acm_node(model)
    assert OP.macs(node, (2, 7, 8)) == 14 * (8 * 5 + 4 * (8 * 12 + 6 * 5))
    node.inputs[1].shape = None
    assert OP.macs(node, (2, 7, 8)) == 14 * 4 * (8 * 12 + 6 * 5)  # what is not known is not counted


def test_the_body_is_written_in_the_opset_that_it_asks_for() -> None:
    assert OP.function().opset_imports[""] == OP.opset


def spoiled(slot: int, shape: tuple[int, ...], kind: type = np.float32):
    """Puts zeros in the place of an operand."""
    return lambda node: edit.overwrite(node.inputs[slot], np.zeros(shape, kind))


def said(**values: object):
    """Gives attributes other values."""
    return lambda node: node.attributes.update({a.name: a for a in ir.convenience.convert_attributes(values)})


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (lambda n: n.replace_input_with(5, None), "takes eight inputs: x, gate, gate_bias, price, w1, b1, w2, b2"),
        (lambda n: n.resize_inputs(7), "takes eight inputs"),
        (lambda n: n.resize_outputs(1), "gives two outputs"),
        (lambda n: n.resize_outputs(3), "gives two outputs"),
        (spoiled(7, (5,), np.float16), "b2 is float32, not FLOAT16"),
        (spoiled(1, (8, 5, 1)), "gate has 2 axes, not 3"),
        (spoiled(2, (5, 1)), "gate_bias has 1 axes, not 2"),
        (lambda n: setattr(n.inputs[3], "shape", ir.Shape([1])), "price has 0 axes, not 1"),
        (spoiled(4, (8, 12)), "w1 has 3 axes, not 2"),
        (spoiled(5, (48,)), "b1 has 2 axes, not 1"),
        (spoiled(6, (6, 5)), "w2 has 3 axes, not 2"),
        (spoiled(7, (1, 5)), "b2 has 1 axes, not 2"),
        (lambda n: n.attributes.pop("gated"), "takes four attributes"),
        (said(more=1), "takes four attributes"),
        (
            said(activation="elu"),
            "activation is one of identity, relu, silu, gelu, gelu-tanh, quick-gelu, relu-squared",
        ),
        (said(gated=2), "gated and int8 are 0 or 1"),
        (said(int8=2), "gated and int8 are 0 or 1"),
        (said(gated=0), "w1 has 6 columns for a learner, not 12"),
        (said(min_learners=-1), "min_learners is between 0 and 4"),
        (said(min_learners=5), "min_learners is between 0 and 4"),
        (said(min_learners=1), r"gate is \[8, 4\], not \[8, 5\]"),
        (spoiled(4, (0, 8, 12)), "min_learners is between 0 and 0"),
        (spoiled(1, (8, 4)), r"gate is \[8, 5\], not \[8, 4\]"),
        (spoiled(1, (7, 5)), r"gate is \[8, 5\], not \[7, 5\]"),
        (spoiled(2, (4,)), r"gate_bias is \[5\], not \[4\]"),
        (spoiled(5, (3, 12)), r"b1 is \[4, 12\], not \[3, 12\]"),
        (spoiled(5, (4, 6)), r"b1 is \[4, 12\], not \[4, 6\]"),
        (spoiled(6, (3, 6, 5)), r"w2 is \[4, 6, 5\], not \[3, 6, 5\]"),
        (spoiled(6, (4, 3, 5)), "w1 has 6 columns for a learner, not 12"),
        (spoiled(7, (4,)), r"b2 is \[5\], not \[4\]"),
    ],
)
def test_misuse_is_refused(spoil, rule: str) -> None:
    model = op_model()
    spoil(acm_node(model))
    with pytest.raises(VerifyError, match=rule):
        verify.check(model)


def test_what_is_not_known_is_not_refused() -> None:
    model = op_model()
    node = acm_node(model)
    node.inputs[3].shape = None
    node.inputs[4].shape = ir.Shape([4, "width", 12])
    node.inputs[0].type = None
    verify.check(model)
    for least in (0, 4):
        verify.check(op_model(least=least))


KNOTS, TABLE = np.array([0.1, 0.4, 0.7, 1.0], np.float32), np.array([3, 1, 0.5, -2], np.float32)


def price_model(knots: np.ndarray = KNOTS, prices: np.ndarray = TABLE):
    model = kit.parse("g (float budget) => (float p) { p = Identity(budget) }")
    old = model.graph.node(0)
    held = [edit.add_const(model.graph, a, n) for n, a in (("knots", knots), ("prices", prices))]
    made = edit.new_node(PRICE.name, [model.graph.inputs[0], *held], before=old, domain=DOMAIN)
    edit.like(made.outputs[0], old.outputs[0])
    edit.replace(old.outputs[0], made.outputs[0])
    edit.remove([old])
    attach(model, PRICE)
    verify.check(model)
    return model


@pytest.mark.parametrize("budget", [-np.inf, -1.0, 0.0, 0.1, 0.25, 0.4, 0.99, 1.0, 2.0, np.inf, np.nan])
def test_price_reads_its_table(budget: float) -> None:
    torch = pytest.importorskip("torch")
    wanted = EVERY if budget >= 1 else 3.0 if np.isnan(budget) else np.interp(budget, KNOTS, TABLE)
    got = kit.run(price_model(), {"budget": np.array(budget, np.float32)})["p"]
    kernel = PRICE.kernel()(torch.tensor(budget), torch.from_numpy(KNOTS), torch.from_numpy(TABLE))
    np.testing.assert_allclose([got, kernel, price_at(budget, KNOTS, TABLE)], wanted, rtol=1e-6, atol=1e-6)


def test_a_price_far_away_does_not_round_the_others() -> None:
    """In float32 a sum from the first price on would be off by its rounding, 0.06 of 10^6."""
    torch = pytest.importorskip("torch")
    knots, table = np.array([0, 0.02, 0.5, 0.98, 1], np.float32), np.array([1e6, 0.03, 0.02, 0.01, -1e6], np.float32)
    for budget in (0.02, 0.3, 0.5, 0.75):
        wanted = np.interp(budget, knots.astype(np.float64), table.astype(np.float64))
        got = kit.run(price_model(knots, table), {"budget": np.array(budget, np.float32)})["p"]
        kernel = PRICE.kernel()(torch.tensor(budget), torch.from_numpy(knots), torch.from_numpy(table))
        np.testing.assert_allclose([got, kernel], wanted, rtol=1e-5)


def test_a_table_that_is_none_is_refused() -> None:
    with pytest.raises(VerifyError, match="prices do not rise"):
        price_model(prices=TABLE[::-1].copy())
    with pytest.raises(VerifyError, match="knots rise to 1"):
        price_model(knots=KNOTS / 2)
