"""Binary and ternary weights: closed forms and brute force."""

from __future__ import annotations

import numpy as np
import pytest

from graphpress.errors import BadRequest
from graphpress.passes.allocate import formats
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.quantizers.affine import AFFINE
from graphpress.passes.quantizers.binary import Binary
from graphpress.passes.quantizers.ternary import Ternary
from graphpress.passes.recover.rounding.gptq import Gptq
from graphpress.types import PER_TENSOR, Scheme, per_channel, per_group
from tests import kit
from tests.passes.quantizing import context, model, normal

SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])
ONE = Scheme("binary", per_channel(0), quantizer="binary")
THREE = Scheme("ternary", per_channel(0), quantizer="ternary")


def back(quantizer: Binary | Ternary, w: np.ndarray, how: Scheme, costs: np.ndarray | None = None) -> np.ndarray:
    params = quantizer.fit(w, how, costs)
    found: np.ndarray = quantizer.dequantize(quantizer.quantize(w, params, how), params, how)
    return found


def lost(w: np.ndarray, v: np.ndarray, costs: np.ndarray | float = 1.0) -> np.ndarray:
    found: np.ndarray = (costs * np.square(w.astype(np.float64) - v)).sum(axis=1)
    return found


@SEEDS
def test_binary_is_the_sign_times_the_mean_size_and_no_other_scale_loses_less(seed: int) -> None:
    w = normal(6, 50, seed=seed)
    w[0, :3] = 0, -0.0, -1e-30
    found = back(Binary(), w, ONE)
    sign = np.where(w >= 0, 1.0, -1.0)
    sign[0, 1] = 1  # of minus 0 too
    mean = np.abs(w.astype(np.float64)).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(found, sign * mean, rtol=1e-6)
    codes = Binary().quantize(w, Binary().fit(w, ONE), ONE).astype(int)
    assert set(np.unique(codes)) == {-1, 1} and codes[0, 0] == 1
    for share in (0.5, 0.99, 1.01, 2.0):
        assert (lost(w, sign * mean * share) > lost(w, found)).all()


@SEEDS
def test_ternary_loses_no_more_than_any_threshold(seed: int) -> None:
    """Against all thresholds there are, each with the scale that serves it best."""
    w = np.random.default_rng(seed).standard_t(3, (8, 40)).astype(np.float32)
    found = lost(w, back(Ternary(), w, THREE))
    sizes = np.sort(np.abs(w.astype(np.float64)), axis=1)
    best = np.full(8, np.inf)
    for i in range(40):
        on = np.abs(w) >= sizes[:, i : i + 1]
        scale = (np.abs(w) * on).sum(axis=1, keepdims=True) / on.sum(axis=1, keepdims=True)
        best = np.minimum(best, lost(w, scale * on * np.sign(w)))
    np.testing.assert_allclose(found, best, rtol=1e-5)
    assert (found < lost(w, back(Binary(), w, ONE))).all()
    assert (back(Ternary(), np.zeros_like(w), THREE) == 0).all()


@SEEDS
def test_costs_weigh_the_scale(seed: int) -> None:
    w, costs = normal(4, 30, seed=seed), np.random.default_rng(seed).uniform(0.1, 5, (4, 30)).astype(np.float32)
    for quantizer, how in ((Binary(), ONE), (Ternary(), THREE)):
        weighed, plain = back(quantizer, w, how, costs), back(quantizer, w, how)
        assert (lost(w, weighed, costs) <= lost(w, plain, costs) + 1e-6).all()
        assert (lost(w, weighed, costs) < lost(w, plain, costs)).any()
        for share in (0.97, 1.03):
            assert (lost(w, weighed * share, costs) > lost(w, weighed, costs)).all()


def test_size_is_a_bit_or_a_fifth_of_a_byte_and_a_scale_a_group() -> None:
    one, three = (Scheme(d, per_group(1, 64), quantizer=d) for d in ("binary", "ternary"))
    scales = 32 * 4 * (32 + 4)  # and a zero point of 4 bits, as DequantizeLinear has it
    assert Binary().bits((32, 256), one) == 32 * 256 + scales
    assert Ternary().bits((32, 256), three) == 8 * -(-32 * 256 // 5) + scales


def test_what_has_no_such_scheme_is_refused() -> None:
    for quantizer, how, why in (
        (Binary(), Scheme("int2", PER_TENSOR), "codes are binary, not int2"),
        (Ternary(), Scheme("ternary", PER_TENSOR, symmetric=False), "it has no zero point"),
    ):
        with pytest.raises(BadRequest, match=why):
            quantizer.fit(normal(2, 4), how)
    with pytest.raises(BadRequest, match="codes are signs: quantizer ternary"):
        AFFINE.fit(normal(2, 4), Scheme("ternary"))
    with pytest.raises(BadRequest, match="NaN or infinity"):
        Binary().fit(np.array([[1, np.nan]], np.float32), ONE)


def test_formats_have_names() -> None:
    for name, dtype in (("w1a16", "binary"), ("w1a8-g64-binary", "binary"), ("w2a16-ternary", "ternary")):
        options = formats.parse(name)
        scheme = options.weight_scheme(PER_TENSOR)
        assert (scheme.dtype, scheme.quantizer) == (dtype, dtype)
    for name in ("w2a16-binary", "w1a16-ternary", "w1a16-asym", "w1a16-power", "w4a16-binary"):
        with pytest.raises(BadRequest, match="is no format"):
            formats.parse(name)


@pytest.mark.parametrize("weight", ["binary", "ternary"])
def test_gptq_rounds_to_it(weight: str) -> None:
    """Closer outputs than each weight by itself, and codes of the format alone."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(300, 48)) @ (rng.normal(size=(48, 48)) * np.logspace(0, -1.5, 48))).astype(np.float32)
    w = normal(48, 24)
    made = model("g (float[N, 48] x, float[48, 24] w) => (float[N, 24] y) { y = MatMul(x, w) }", {"w": w})
    how = Quantize(mode="weight", weight=weight, kernels="preferred")  # type: ignore[arg-type]
    nearest, ours = (
        kit.run(kit.apply(made, how, *more, ctx=context({"x": x}, None))[0], {"x": x})["y"] for more in ([], [Gptq()])
    )
    assert np.square(ours - x @ w).sum() < 0.9 * np.square(nearest - x @ w).sum()
