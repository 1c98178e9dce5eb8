"""Adapters one by one: ``lora`` and ``low_rank`` against what their papers say, in numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.passes.recover.adapters import base, low_rank
from graphpress.passes.recover.adapters.base import Adapter
from graphpress.passes.recover.adapters.lora import Lora
from graphpress.passes.recover.adapters.low_rank import LowRank
from graphpress.passes.structure.layers.linear import Linear, linear
from tests import kit
from tests.passes import quantizing
from tests.passes.adapting import CTX, MATMUL, SITES, feeds, floats, int4, layer, raw, shake
from tests.passes.quantizing import normal


@pytest.mark.parametrize("site", [s for s in SITES if s.startswith(("double", "float"))])
def test_lora_is_w_plus_alpha_over_r_b_a_to_the_last_bits(site: str) -> None:
    """Against numpy in float64: the layer with the merged weight."""
    model = SITES[site]()
    plain, view = model.clone(), layer(model)
    made = Lora(rank=3, alpha=6.0).insert(model, view, CTX)
    shake(model, made, made.trained, 0.5)
    a, b = made.array(model, "a"), made.array(model, "b")
    if layer(plain).transposed:
        a, b = a.T, b.T
    merged = layer(plain).weight() + 2.0 * (b @ a).reshape(layer(plain).shape)
    edit.overwrite(layer(plain).weight_value, np.ascontiguousarray(merged.T if layer(plain).transposed else merged))
    kit.assert_same_outputs(plain, model, feeds(model), rtol=0, atol=1e-12 if site.startswith("double") else 1e-5)


def test_lora_starts_with_kaimings_uniform_and_zero() -> None:
    model = floats("agraph (float[N, 400] x, float[400, 50] w) => (float[N, 50] y) { y = MatMul(x, w) }")
    made = Lora(rank=30).insert(model, layer(model), CTX)
    a = made.array(model, "a")
    assert a.shape == (400, 30) and not made.array(model, "b").any()
    assert np.abs(a).max() <= 400**-0.5 and a.std() == pytest.approx(400**-0.5 / 3**0.5, rel=0.03)


def test_lora_refuses_a_weight_that_others_read_too() -> None:
    model = quantizing.model(
        "agraph (float[N, 8] x, float[8, 8] w) => (float[N, 8] y) { h = MatMul(x, w) y = MatMul(h, w) }",
        {"w": normal(8, 8)},
    )  # fmt: skip
    views = [linear(n) for n in model.graph]
    assert [Lora().fits(model, v) for v in views if isinstance(v, Linear)] == [False, False]


def test_low_rank_starts_with_the_best_approximation_of_what_rounding_loses() -> None:
    """(Eckart-Young) what is left is the energy of the other singular values, and never more than all of it."""
    model = int4("agraph (float[N, 32] x, float[32, 48] w) => (float[N, 48] y) { y = MatMul(x, w) }")
    view = layer(model)
    dq = view.node.inputs[1]
    assert dq is not None and dq.producer() is not None
    codes = kit.run(model, {"x": np.eye(32, dtype=np.float32)})["y"]  # Q(W), as the runtime has it
    lost = view.weight().astype(np.float64).T - codes
    made = LowRank(rank=8).insert(model, view, CTX)
    left, right = low_rank.factors(made.array(model, "down"), made.array(model, "up"))
    s = np.linalg.svd(lost, compute_uv=False)
    rest = np.sum((lost - (left @ right).T) ** 2)
    assert rest == pytest.approx(np.sum(s[8:] ** 2), rel=1e-5) and rest < np.sum(lost**2)
    np.testing.assert_allclose(np.linalg.norm(left, axis=0), np.sqrt(s[:8]), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(right, axis=1), np.sqrt(s[:8]), rtol=1e-5)


@pytest.mark.parametrize("site", ["int4 matmul", "int4 conv", "w4a4 transB"])
def test_low_rank_at_full_strength_is_the_quantized_layer_plus_l_r_of_what_it_reads(site: str) -> None:
    model = SITES[site]()
    plain, rank = model.clone(), 5
    made = LowRank(rank).insert(model, layer(model), CTX)
    gamma = made.array(model, "gamma")
    faded = np.linspace(1, 0.2, rank, dtype=np.float32).reshape(gamma.shape)
    edit.overwrite(made.value(model, "gamma"), faded)
    left, right = low_rank.factors(made.array(model, "down"), made.array(model, "up"))
    view = layer(plain)
    added = ((left * faded.ravel()) @ right).reshape(view.shape)
    effective = base.evaluated(plain, view.node.inputs[1], CTX)  # type: ignore[arg-type]
    weight = effective + (added.T if view.transposed else added)
    edit.set_input(view.node, 1, edit.add_const(plain.graph, weight.astype(np.float32), "effective"))
    kit.assert_same_outputs(plain, model, feeds(model), rtol=0, atol=5e-6)


def test_low_rank_is_not_folded_while_it_counts_and_nothing_changes() -> None:
    model = int4(MATMUL)
    made = LowRank(4).insert(model, layer(model), CTX)
    edit.overwrite(made.value(model, "gamma"), np.array([0, 0, 0.25, 0], np.float32))
    before = raw(model)
    with pytest.raises(BadRequest, match=r"its branch still counts: gamma is up to 0\.25\. Let it fade to 0 first"):
        LowRank.fold(model, made, CTX)
    assert raw(model) == before


def test_halving_keeps_the_product_of_what_is_kept_in_order_of_its_singular_values() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(20, 8)), rng.normal(size=(8, 15))
    l, r = low_rank.halved(left, right, 4)  # noqa: E741
    assert l.shape == left.shape and r.shape == right.shape and not l[:, 4:].any() and not r[4:].any()
    np.testing.assert_allclose(l @ r, left[:, :4] @ right[:4], rtol=0, atol=1e-12)
    s = np.linalg.svd(left[:, :4] @ right[:4], compute_uv=False)[:4]
    np.testing.assert_allclose(np.linalg.norm(l[:, :4], axis=0) ** 2, s, rtol=1e-10)
    assert (np.diff(np.linalg.norm(l[:, :4], axis=0)) <= 0).all()


@pytest.mark.parametrize("keep", [0, 2, 4])
def test_halving_more_columns_than_the_matrix_has_rank_loses_nothing(keep: int) -> None:
    left, right = normal(3, 8).astype(np.float64), normal(8, 20, seed=1).astype(np.float64)
    l, r = low_rank.halved(left, right, keep)  # noqa: E741
    assert l.shape == left.shape and r.shape == right.shape and not l[:, min(keep, 3) :].any()
    np.testing.assert_allclose(l @ r, left[:, :keep] @ right[:keep], rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [lambda: Lora(rank=0), lambda: Lora(alpha=-1.0), lambda: LowRank(rank=0)])
def test_bad_options_are_refused_by_name(make: Callable[[], Adapter]) -> None:
    with pytest.raises(BadRequest, match=r"adapter '(lora|low_rank)'"):
        make()
