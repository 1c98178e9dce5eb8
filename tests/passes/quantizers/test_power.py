"""Levels spaced by a power: the checks of PowerQuant and NUPES, against closed forms and a walk over exponents."""

from __future__ import annotations

import numpy as np
import pytest

from graphpress.contracts import PassReport
from graphpress.errors import BadRequest
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.quantizers.power import Power, levels, power
from graphpress.passes.recover.rounding import grids
from graphpress.passes.recover.rounding.learn_format import LearnFormat
from graphpress.types import Scheme, per_channel
from tests import kit
from tests.passes.quantizing import context, model, normal

FOUR = Scheme("int4", per_channel(0))
TAILS = {"gaussian": 0, "laplace": 1, "long": 2}


def weights(kind: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((256, 512))
    made = {
        "gaussian": normal,
        "laplace": rng.laplace(size=normal.shape),
        "long": normal * np.exp(0.6 * rng.standard_normal(normal.shape)),
    }
    return made[kind].astype(np.float32)


def error(w: np.ndarray, exponent: float | str, scheme: Scheme = FOUR) -> float:
    format = Power(exponent)  # type: ignore[arg-type]
    params = format.fit(w, scheme)
    back = format.dequantize(format.quantize(w, params, scheme), params, scheme)
    return float(np.square(back - w).sum() / np.square(w).sum())


@pytest.mark.parametrize("a", [0.4, 0.5, 0.7, 1.0])
def test_products_are_mapped_to_products(a: float) -> None:
    """Check (i): an automorphism of multiplication, but not of addition."""
    x, y = np.random.default_rng(0).standard_normal((2, 1000))
    np.testing.assert_allclose(power(power(x, a) * power(y, a), 1 / a), x * y, rtol=1e-6)
    if a != 1:
        assert abs(power(power(x, a) + power(y, a), 1 / a) - (x + y)).max() > 0.1


@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_the_integers_of_the_half_power_multiply_as_the_floats_do(observer: str) -> None:
    """Check (ii): squares of 4-bit codes in int32 sums, against the decoded weight in float64, to the last bit."""
    rng, scheme = np.random.default_rng(1), Scheme("int4", per_channel(0), observer=observer)
    w, x = rng.standard_normal((32, 64)).astype(np.float32), rng.integers(0, 256, (16, 64))
    params = Power(0.5).fit(w, scheme)
    codes = Power(0.5).quantize(w, params, scheme).astype(np.int32)
    squares = np.sign(codes) * codes**2
    assert abs(squares).max() <= 64  # 8-bit integers
    sums = x.astype(np.int32) @ squares.T
    decoded = Power(0.5).dequantize(codes, params, scheme).astype(np.float64)
    np.testing.assert_array_equal(decoded, (squares.astype(np.float32) * params.scale[:, None]).astype(np.float64))
    exact = x.astype(np.float64) @ squares.T.astype(np.float64)
    np.testing.assert_array_equal(exact, sums)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", TAILS)
def test_less_error_than_evenly_spaced_levels(kind: str, seed: int) -> None:
    """Check (iii): the least over exponents is under 0.85 of that of exponent 1."""
    w = weights(kind, seed)
    assert min(error(w, a) for a in np.arange(0.4, 1, 0.05)) < 0.85 * error(w, 1.0)


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2))])
def test_heavier_tails_want_smaller_exponents(seed: int) -> None:
    grid = np.linspace(0.4, 1, 25)
    best = [grid[np.argmin([error(weights(kind, seed), a) for a in grid])] for kind in TAILS]
    assert best[0] > best[1] >= best[2] - 0.025
    assert best[0] > best[2]


@pytest.mark.parametrize("kind", TAILS)
def test_the_search_finds_what_a_walk_over_all_exponents_finds(kind: str) -> None:
    w = weights(kind, 3)
    # Within 3 %: levels jump from integer to integer, so the error does over exponents.
    assert error(w, "search") <= 1.03 * min(error(w, a) for a in np.linspace(0.3, 1, 36))


def test_exponent_one_is_the_even_grid() -> None:
    w = weights("gaussian", 0)
    top = np.abs(w).max(axis=1, keepdims=True)
    expected = np.rint(w / top * 7) * top / 7
    params = Power(1.0).fit(w, FOUR)
    back = Power(1.0).dequantize(Power(1.0).quantize(w, params, FOUR), params, FOUR)
    assert (abs(back - expected) <= top * (0.5 / 63 + 1e-6)).mean() > 0.9999  # but for ties: levels are 8-bit integers
    eight = Scheme("int8", per_channel(0))
    params = Power(1.0).fit(w, eight)
    back = Power(1.0).dequantize(Power(1.0).quantize(w, params, eight), params, eight)
    assert np.isclose(back, np.rint(w / top * 127) * top / 127, rtol=1e-5, atol=1e-6).mean() > 0.9999


@pytest.mark.parametrize("exponent", [0.2, 0.35, 0.5, 0.62, 0.75, 1.0])
@pytest.mark.parametrize("dtype", ["int4", "int3"])
def test_few_levels_are_different_8_bit_integers_on_the_curve(exponent: float, dtype: str) -> None:
    scheme = Scheme(dtype, per_channel(0))
    numbers, bounds = levels(exponent, scheme)
    assert (abs(numbers) <= 64).all()  # two products with 255 fit 16 bits: 2 * 255 * 64 < 2^15
    assert (numbers == numbers.astype(np.int8)).all() and (np.diff(numbers) > 0).all()
    assert (numbers[:-1] < bounds).all() and (bounds < numbers[1:]).all()
    q = np.arange(1, scheme.qmax + 1)
    curve = numbers[-1] * (q / scheme.qmax) ** (1 / exponent)
    assert (abs(numbers[-scheme.qmax :] - np.maximum(curve, q)) <= 0.5).all()


def test_zero_and_the_largest_are_kept() -> None:
    w = np.array([[0.0, 2.0, -2.0, 1e-9], [0, 0, 0, 0]], np.float32)
    params = Power().fit(w, FOUR)
    np.testing.assert_allclose(Power().dequantize(Power().quantize(w, params, FOUR), params, FOUR), np.round(w, 6))


@pytest.mark.parametrize("exponent", [0.0, -1.0, 1.5, float("nan")])
def test_exponents_out_of_range_are_refused(exponent: float) -> None:
    with pytest.raises(BadRequest, match="exponent"):
        Power(exponent)


def test_learned_scales_leave_the_integers_that_kernels_multiply() -> None:
    made = model(
        "g (float[N, 32] x, float[32, 24] w) => (float[N, 24] y) { [m] y = MatMul(x, w) }", {"w": normal(32, 24)}
    )
    quantize = Quantize(mode="weight", weight="int4", quantizer="power", kernels="preferred")
    x = np.random.default_rng(3).normal(size=(200, 32)).astype(np.float32)
    after, _ = kit.apply(made, quantize, LearnFormat(steps=20), ctx=context({"x": x}, target=None))
    (layer,) = grids.quantized_layers(after, PassReport())
    book, codes = layer.params().tables["book"], np.arange(-8, 8)
    np.testing.assert_array_equal(book, np.sign(codes) * codes**2)
