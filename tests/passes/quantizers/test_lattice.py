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
