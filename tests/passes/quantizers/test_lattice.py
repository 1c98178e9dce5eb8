"""Weights that lie on an even grid keep it: quantizing them loses nothing beyond float32."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphpress.passes.quantizers import lattice
from graphpress.passes.quantizers.affine import AFFINE
from graphpress.types import PER_TENSOR, Granularity, Scheme, per_channel


@given(st.integers(0, 2**31), st.floats(1e-4, 10), st.sampled_from([4, 8]))
def test_the_step_is_found(seed: int, s: float, bits: int) -> None:
    codes = np.random.default_rng(seed).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), size=(64, 50))
    found = lattice.step((codes * np.float32(s)).astype(np.float32))
    assert found == pytest.approx(s, rel=1e-5)


@given(st.integers(0, 2**31))
def test_ordinary_weights_lie_on_none(seed: int) -> None:
    assert lattice.step(np.random.default_rng(seed).normal(size=(64, 50)).astype(np.float32)) is None


@pytest.mark.parametrize(
    ("granularity", "symmetric"),
    [(per_channel(0), True), (PER_TENSOR, True), (PER_TENSOR, False)],
)
@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_nothing_is_lost(granularity: Granularity, symmetric: bool, observer: str) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-127 if symmetric else -128, 128, size=(16, 40))
    codes[3] //= 9  # a channel with a short range gets the step of the tensor, not one of its own
    weight = (codes * np.float32(0.0173)).astype(np.float32)
    scheme = Scheme("int8", granularity, symmetric, observer=observer)
    params = AFFINE.fit(weight, scheme)
    back = AFFINE.dequantize(AFFINE.quantize(weight, params, scheme), params, scheme)
    np.testing.assert_allclose(back, weight, rtol=2e-6, atol=0)


def test_channels_that_need_more_codes_are_rounded_as_usual() -> None:
    codes = np.random.default_rng(0).integers(-127, 128, size=(4, 200))
    codes[2] *= 2
    weight = (codes * np.float32(0.5)).astype(np.float32)
    params = AFFINE.fit(weight, Scheme("int8", per_channel(0)))
    np.testing.assert_allclose(params.scale[[0, 1, 3]], 0.5, rtol=1e-6)
    assert params.scale[2] == np.float32(np.abs(weight[2]).max() / 127)


@pytest.mark.parametrize("weight", [np.zeros((4, 4)), np.ones((4, 4)), np.array([[1.0, -1.0, 0.0]])])
def test_too_little_to_judge_by(weight: np.ndarray) -> None:
    assert lattice.step(weight.astype(np.float32)) is None


def _on(codes: list[float], step: float = 0.5) -> float | None:
    return lattice.step(np.array(codes, np.float32) * np.float32(step))


@pytest.mark.parametrize(
    ("codes", "found"),
    [
        ([1, 2, 3, 4], True),
        ([0.5, 1, 1.5, 2], True),  # the largest value is 1
        ([1, -2, 3, 0], True),  # zero is a level
        ([1, 2, 3, 1], False),  # three levels are no evidence
        (list(range(1, 513)), True),
        (list(range(1, 514)), False),  # 513 magnitudes
        ([1, 2, 3, 512], True),
        ([1, 2, 3, 600], False),  # few, but too far apart
        ([1, 2, 3.0005, 400], True),
        ([1, 2, 3.005, 400], False),  # off by more than a thousandth of a step
        ([1, 2, 3, 2.995, 4, 5, 6, 400], False),
        ([5, 6, 8, 9], True),  # the least magnitude is not the step
        ([1, 3, 5, 7], True),  # nor is the least gap between two
        ([0, 1, 1.99925, 2.00075], True),  # two that noise has parted are one
    ],
)
def test_what_counts_as_a_grid(codes: list[float], found: bool) -> None:
    step = _on(codes)
    assert (step is not None) == found
    if step is not None:
        least = min(abs(c) for c in codes if c)
        assert step == pytest.approx(0.5 * (least if least < 1 else 1), rel=1e-4)


def test_magnitudes_begin_at_zero() -> None:
    assert _on([3, 4, 5, 6], 0.4) == pytest.approx(0.4, rel=1e-6)


def test_many_values_are_judged_by_a_sample_and_held_to_all() -> None:
    codes = np.random.default_rng(0).integers(-100, 101, size=20_001)
    weight = (codes * np.float32(0.25)).astype(np.float32)
    assert lattice.step(weight) == pytest.approx(0.25, rel=1e-6)
    weight[1] = 0.25 * 7.4  # between two that are looked at first
    assert lattice.step(weight) is None


def test_the_step_is_the_best_fit_to_all_values() -> None:
    """Least squares over all codes: noise of a ten-thousandth of a step averages out."""
    rng = np.random.default_rng(3)
    codes = rng.integers(-127, 128, size=4000)
    levels = np.arange(128) + rng.normal(size=128) * 1e-4
    weight = (np.sign(codes) * levels[np.abs(codes)] * 0.031).astype(np.float32)
    expected = float((weight.astype(np.float64) * codes).sum() / (codes * codes).sum())
    assert lattice.step(weight) == pytest.approx(expected, rel=1e-12)
