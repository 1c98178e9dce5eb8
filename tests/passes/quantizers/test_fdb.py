"""Flexible dual binarization: the checks of DB-LLM."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from graphpress.contracts import PassReport
from graphpress.errors import BadRequest
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.quantizers.fdb import DualBinary
from graphpress.passes.quantizers.quantizer import QParams
from graphpress.passes.recover.rounding import grids
from graphpress.passes.recover.rounding.learn_format import LearnFormat
from graphpress.types import Scheme, per_channel, per_group
from tests import kit
from tests.passes.quantizing import context, model, normal

SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])
FDB = DualBinary()
HOW = Scheme("int2", per_channel(0), observer="mse", quantizer="fdb")
ONE = """<ir_version: 13, opset_import: ["" : 25]>
g (float[N, 64] x, float[64, 24] w) => (float[N, 24] y) { [m] y = MatMul(x, w) }"""


def bits(w: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """b1 and b2 by their definition."""
    one = w > (first + second) / 2
    two = -(w - first * one - second / 2) > 0
    return one, two


def scales(params: QParams) -> tuple[np.ndarray, np.ndarray]:
    return params.scale[:, None], params.beside["second"][:, None]


@SEEDS
@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_it_begins_as_two_bit_rounding_to_the_nearest(seed: int, observer: str) -> None:
    w, how = normal(16, 96, seed=seed), replace(HOW, observer=observer)
    params = FDB.fit(w, how)
    s = params.scale[:, None] / 2
    np.testing.assert_array_equal(params.beside["second"][:, None], -s)
    back = FDB.dequantize(FDB.quantize(w, params, how), params, how)
    np.testing.assert_allclose(back, np.clip(np.rint(w / s), -1, 2) * s, rtol=1e-6, atol=1e-7)
    assert len(np.unique(back[0])) <= 4 and (FDB.dequantize(np.full(w.shape, -1, np.int8), params, how) == 0).all()


@SEEDS
def test_codes_are_the_bits_of_the_definition_wherever_the_scales_are(seed: int) -> None:
    """Thresholds move with the scales: nearest of the levels a2, 0, a1 + a2, a1."""
    rng, w = np.random.default_rng(seed), normal(16, 96, seed=seed)
    params = FDB.fit(w, HOW)
    moved = replace(
        params, scale=params.scale * rng.uniform(0.7, 1.3, 16).astype(np.float32),
        beside={"second": params.beside["second"] * rng.uniform(0.6, 1.2, 16).astype(np.float32)},
    )  # fmt: skip
    first, second = scales(moved)
    one, two = bits(w, first, second)
    back = FDB.dequantize(FDB.quantize(w, moved, HOW), moved, HOW)
    np.testing.assert_allclose(back, first * one + second * two, rtol=1e-6, atol=1e-7)
    levels = np.stack([second, 0 * second, first + second, first], axis=-1)
    np.testing.assert_allclose(np.abs(back - w), np.abs(levels - w[..., None]).min(axis=-1), rtol=1e-5, atol=1e-6)


@SEEDS
def test_two_masked_sums_are_the_product(seed: int) -> None:
    w, x = normal(16, 96, seed=seed), normal(8, 96, seed=seed + 9)
    params = FDB.fit(w, HOW)
    first, second = scales(params)
    one, two = bits(w, first, second)
    product = x @ one.T.astype(np.float32) * first.T + x @ two.T.astype(np.float32) * second.T
    dense = x @ FDB.dequantize(FDB.quantize(w, params, HOW), params, HOW).T
    assert np.abs(product - dense).max() <= 1e-5 * np.abs(dense).max()


@SEEDS
def test_learned_scales_bring_outputs_closer_and_levels_stay_in_order(seed: int) -> None:
    """By at least 5 % of the squared error, on samples that were held out."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(400, 64)) @ (rng.normal(size=(64, 64)) * np.logspace(0, -1.5, 64))).astype(np.float32)
    quantize = Quantize(mode="weight", weight="int2", quantizer="fdb", weight_observer="mse", kernels="preferred")
    made = model(ONE, {"w": normal(64, 24, seed=seed)})
    after, reports = kit.apply(made, quantize, LearnFormat(steps=60, rate=0.02), ctx=context({"x": x}, target=None))
    assert reports[-1].metrics["error against the format as fitted"] < 0.95
    (layer,) = grids.quantized_layers(after, PassReport())
    params = layer.params()
    assert (params.beside["second"] < 0).all() and (params.scale + params.beside["second"] > 0).all()
    assert np.unique(np.round(-2 * params.beside["second"] / params.scale, 3)).size > 1  # evenly spaced no more
    np.testing.assert_allclose(kit.run(after, {"x": x})["y"], x @ layer.rounded(params).T, rtol=1e-4, atol=1e-4)


def test_size_is_two_bits_and_two_scales_a_group() -> None:
    how = Scheme("int2", per_group(1, 64), quantizer="fdb")
    assert FDB.bits((32, 256), how) == 32 * 256 * (2 + 2 * 32 / 64) + 2 * 4 * 32


def test_other_types_are_refused_and_zeros_are_kept() -> None:
    with pytest.raises(BadRequest, match="fdb: codes are int2, not int4"):
        FDB.fit(normal(2, 8), Scheme("int4", per_channel(0), quantizer="fdb"))
    w = np.zeros((2, 8), np.float32)
    params = FDB.fit(w, HOW)
    assert (FDB.dequantize(FDB.quantize(w, params, HOW), params, HOW) == 0).all()
