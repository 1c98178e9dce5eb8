"""Code books: the checks of Polino et al. against closed forms, brute force and finite differences."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from graphpress.contracts import PassReport
from graphpress.errors import BadRequest
from graphpress.keys import SPARSITY
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.quantizers.points import Points, k_means
from graphpress.passes.quantizers.quantizer import QParams
from graphpress.passes.recover.rounding import grids
from graphpress.passes.recover.rounding.learn_format import LearnFormat
from graphpress.types import Scheme, per_channel, per_group
from tests import kit
from tests.passes.quantizing import context, model, normal

SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])
ONE = "g (float[N, 64] x, float[64, 24] w) => (float[N, 24] y) { [m] y = MatMul(x, w) }"


def scheme(dtype: str = "int4", size: int = 256) -> Scheme:
    return Scheme(dtype, per_group(1, size), quantizer="points")


def weights(seed: int, shape: tuple[int, int] = (12, 512)) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(4, shape).astype(np.float32)


@SEEDS
@pytest.mark.parametrize(("dtype", "levels"), [("int2", 4), ("int4", 16), ("int8", 256)])
def test_uniform_points_are_uniform_quantization_of_each_bucket(seed: int, dtype: str, levels: int) -> None:
    """``round(sc (s - 1)) / (s - 1)``, each bucket of 256 within its row."""
    w, how = weights(seed), scheme(dtype)
    quantizer = Points("uniform")
    params = quantizer.fit(w, how)
    back = quantizer.dequantize(quantizer.quantize(w, params, how), params, how)
    buckets = w.reshape(-1, 256).astype(np.float64)
    low, span = buckets.min(axis=1, keepdims=True), np.ptp(buckets, axis=1, keepdims=True)
    share = (buckets - low) / span * (levels - 1)
    clear = (np.abs(share % 1 - 0.5) > 1e-3).reshape(w.shape)  # no ties
    expected = (np.rint(share) / (levels - 1) * span + low).reshape(w.shape)
    np.testing.assert_allclose(back[clear], expected[clear], rtol=1e-5, atol=1e-5)
    assert params.scale.shape == (12, 2)


@SEEDS
def test_percentiles_hold_equally_many_numbers(seed: int) -> None:
    w, how = weights(seed, (1, 4096)), Scheme("int3", per_channel(0), quantizer="points")
    book = Points("percentile").fit(w, how).tables["book"][4:12]
    share = (w - w.min()) / np.ptp(w)
    between = [np.mean((share > a) & (share <= b)) for a, b in itertools.pairwise(book)]
    np.testing.assert_allclose(between, 1 / 7, atol=0.01)


@SEEDS
def test_k_means_finds_the_best_cut_of_few_numbers(seed: int) -> None:
    """Against all cuts of 14 weighted numbers in two; from any start it ends in its own means."""
    rng = np.random.default_rng(seed)
    numbers, worth = np.sort(rng.normal(size=14)), rng.uniform(0.5, 2, 14)
    best = np.inf, np.zeros(2)
    for cut in range(1, 14):
        means = np.array([np.average(numbers[p], weights=worth[p]) for p in (slice(cut), slice(cut, None))])
        error = sum(
            (worth[p] * (numbers[p] - m) ** 2).sum() for p, m in zip((slice(cut), slice(cut, None)), means, strict=True)
        )
        best = min(best, (error, means), key=lambda found: found[0])
    np.testing.assert_allclose(k_means(numbers, worth, best[1]), best[1], rtol=1e-12)
    points = k_means(numbers, worth, np.array([-1.0, 1.0]))
    near = np.abs(numbers[:, None] - points).argmin(axis=1)
    np.testing.assert_allclose(points, [np.average(numbers[near == i], weights=worth[near == i]) for i in (0, 1)])


@SEEDS
@pytest.mark.parametrize("dtype", ["int2", "int3", "int4"])
def test_k_means_loses_less_than_percentiles_and_even_points(seed: int, dtype: str) -> None:
    w, how, lost = weights(seed), scheme(dtype), {}
    for place in ("kmeans", "percentile", "uniform"):
        quantizer = Points(place)  # type: ignore[arg-type]
        params = quantizer.fit(w, how)
        lost[place] = np.square(quantizer.dequantize(quantizer.quantize(w, params, how), params, how) - w).sum()
    assert lost["kmeans"] < 0.9 * min(lost["percentile"], lost["uniform"])


def test_the_gradient_of_a_point_is_the_sum_over_what_lies_on_it() -> None:
    """``dL/dp_j = sum_(i on j) alpha_i dL/dq_i`` against central differences in float64, to 1e-4."""
    w, how = weights(5, (4, 64)).astype(np.float64), Scheme("int3", per_channel(0), quantizer="points")
    params = Points().fit(w.astype(np.float32), how)
    towards = np.random.default_rng(6).normal(size=w.shape)

    def loss(book: np.ndarray) -> float:
        return float(
            np.square(book[codes + 8] * params.scale[:, None] + params.beside["second"][:, None] - towards).sum()
        )

    codes = Points().quantize(w.astype(np.float32), params, how).astype(np.int64)
    book = params.tables["book"].astype(np.float64)
    given = replace(params.mapped(torch.from_numpy), tables={n: torch.from_numpy(t) for n, t in params.tables.items()})
    leaf = torch.from_numpy(params.tables["book"]).requires_grad_()
    given = replace(given, tables={**given.tables, "book": leaf})
    out = Points().dequantize(torch.from_numpy(codes), given, how)
    (out - torch.from_numpy(towards)).square().sum().backward()
    assert leaf.grad is not None
    for j in range(4, 12):
        step = np.zeros(16)
        step[j] = 1e-5
        assert float(leaf.grad[j]) == pytest.approx((loss(book + step) - loss(book - step)) / 2e-5, rel=1e-4, abs=1e-3)


@SEEDS
def test_points_stay_sorted_and_bounds_between_them(seed: int) -> None:
    w, how = weights(seed), scheme("int3")
    params = Points().fit(w, how)
    moved = params.tables["book"] + np.random.default_rng(seed).normal(size=16).astype(np.float32) * 0.2
    after = Points().following(
        QParams(params.scale, params.zero_point, {**params.tables, "book": moved}, params.beside), how
    )
    book, bounds = after.tables["book"], after.tables["bounds"]
    assert (np.diff(book) >= 0).all()
    inside = bounds[np.isfinite(bounds)]
    np.testing.assert_allclose(inside, (book[4:11] + book[5:12]) / 2)


@SEEDS
@pytest.mark.parametrize("quantizer", ["points:place=percentile", "points"])
def test_learned_points_bring_outputs_closer(seed: int, quantizer: str) -> None:
    """50 steps, by more than 10 % on samples that were held out; what is written decodes as said."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(400, 64)) @ (rng.normal(size=(64, 64)) * np.logspace(0, -1.5, 64))).astype(np.float32)
    made = model(ONE, {"w": normal(64, 24, seed=seed)})
    quantize = Quantize(mode="weight", weight="int3", quantizer=quantizer, kernels="preferred")
    after, reports = kit.apply(made, quantize, LearnFormat(steps=50, rate=0.02), ctx=context({"x": x}, target=None))
    assert reports[-1].changed == 1
    assert reports[-1].metrics["error against the format as fitted"] < 0.9
    (layer,) = grids.quantized_layers(after, PassReport())
    np.testing.assert_allclose(kit.run(after, {"x": x})["y"], x @ layer.rounded(layer.params()).T, rtol=1e-4, atol=1e-4)


def test_a_book_larger_than_the_data_is_refused_or_leaves_the_layer_float() -> None:
    with pytest.raises(BadRequest, match="a book of 256 points for 64 numbers"):
        Points().fit(np.ones((8, 8), np.float32), Scheme("int8", per_channel(0), quantizer="points"))
    text = "g (float[N, 8] x, float[8, 4] w) => (float[N, 4] y) { [m] y = MatMul(x, w) }"
    quantize = Quantize(mode="weight", weight="int8", quantizer="points", kernels="preferred")
    _, (report,) = kit.apply(model(text, {"w": normal(8, 4)}), quantize, ctx=context(target=None))
    assert report.changed == 0
    assert any("a book of 256 points for 32 numbers" in s.why for s in report.skips)


@pytest.mark.parametrize("w", [np.full((2, 64), 3.0), np.zeros((2, 64)), np.eye(8, 64)])
def test_constants_and_zeros_are_kept(w: np.ndarray) -> None:
    how = Scheme("int4", per_channel(0), quantizer="points")
    params = Points().fit(w.astype(np.float32), how)
    back = Points().dequantize(Points().quantize(w.astype(np.float32), params, how), params, how)
    np.testing.assert_allclose(back, w, atol=1e-4)


def test_pruned_layers_stay_float_as_their_zeros_would_not_stay_zero() -> None:
    w = normal(64, 24)
    w.reshape(16, 4, 24)[:, :2] = 0
    pruned = model(ONE, {"w": w})
    next(iter(pruned.graph)).metadata_props[SPARSITY] = "2:4"
    quantize = Quantize(mode="weight", weight="int4", quantizer="points", kernels="preferred")
    _, (report,) = kit.apply(pruned, quantize, ctx=context(target=None))
    assert report.changed == 0
    assert any("keeps no zeros" in s.why for s in report.skips)
