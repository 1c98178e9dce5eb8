"""Levels spaced by powers of two, those of each sign for themselves: the checks of TLQ (LRQ-DiT)."""

from __future__ import annotations

import numpy as np
import pytest

from graphpress.errors import BadRequest
from graphpress.passes.quantizers.affine import Affine
from graphpress.passes.quantizers.quantizer import QParams, Quantizer
from graphpress.passes.quantizers.tlq import TwinLog
from graphpress.types import Scheme, per_channel

TLQ = TwinLog()
SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])
BITS = pytest.mark.parametrize("dtype", ["int3", "int4"])


def weights(seed: int, *, tails: bool = True) -> np.ndarray:
    """Normal, 0.2 % of it six times as large: the long tail of the check."""
    rng = np.random.default_rng(seed)
    made = rng.standard_normal((64, 512)).astype(np.float32)
    if tails:
        made[rng.random(made.shape) < 0.002] *= 6
    return made


def scheme(dtype: str = "int4", observer: str = "mse") -> Scheme:
    return Scheme(dtype, per_channel(0), observer=observer, quantizer="tlq")


def coded(w: np.ndarray, how: Scheme, quantizer: Quantizer = TLQ) -> tuple[np.ndarray, np.ndarray, QParams]:
    """(codes, the numbers that they stand for, parameters)."""
    params = quantizer.fit(w, how)
    codes = quantizer.quantize(w, params, how)
    return codes.astype(np.int64), quantizer.dequantize(codes, params, how), params


def lost(w: np.ndarray, how: Scheme, quantizer: Quantizer = TLQ) -> float:
    return float(np.square(coded(w, how, quantizer)[1] - w).sum() / np.square(w).sum())


@SEEDS
@BITS
def test_every_number_keeps_its_sign_and_zeros_stay_where_there_are_any(seed: int, dtype: str) -> None:
    """Check (i)."""
    w = weights(seed)
    assert not (w == 0).any()
    np.testing.assert_array_equal(np.sign(coded(w, scheme(dtype))[1]), np.sign(w))
    w[:, ::2] = 0
    w[3] = 0
    codes, back, _ = coded(w, scheme(dtype))
    np.testing.assert_array_equal(np.sign(back), np.sign(w))
    np.testing.assert_array_equal(codes[w == 0], 0)


@SEEDS
@BITS
def test_less_error_than_even_levels_that_reach_the_extremes_of_long_tails(seed: int, dtype: str) -> None:
    """Check (iii): by far more than 10 %, and at this tail less than even levels with a searched clip too."""
    w = weights(seed)
    even = lost(w, scheme(dtype, "minmax"), Affine())
    assert lost(w, scheme(dtype)) < 0.75 * even
    assert lost(w, scheme(dtype)) < 0.9 * lost(w, scheme(dtype), Affine())
    assert lost(w, scheme(dtype, "minmax")) < 0.75 * even


@SEEDS
def test_signs_have_scales_and_steps_of_their_own(seed: int) -> None:
    w = weights(seed)
    w[w < 0] *= 20
    w[w < 0] = -(np.abs(w[w < 0]) ** 2)
    _, back, params = coded(w, scheme())
    assert (params.beside["negative"] > 20 * params.scale).all()
    assert np.mean(params.beside["negative_row"] > params.beside["row"]) > 0.8  # squares reach over more octaves
    for side in (w > 0, w < 0):
        assert np.square(back - w)[side].sum() < 0.03 * np.square(w)[side].sum()


@SEEDS
@BITS
def test_the_search_is_no_worse_than_a_walk_over_all_clips_and_floors(seed: int, dtype: str) -> None:
    """Per row and sign, levels ``c 2^(-d + d j / (n - 1))`` in float64; the search is within 5 % in the mean."""
    w, how = weights(seed)[:12], scheme(dtype)
    n = 1 << (int(dtype[3:]) - 1)
    best = 0.0
    for sizes in [np.abs(row[sign * row > 0]).astype(np.float64) for row in w for sign in (1, -1)]:
        errors = []
        for clip in np.arange(0.3, 1.01, 0.05):
            for octaves in np.arange(2, 10.1, 0.5):
                top, step = np.log2(clip * sizes.max()), octaves / (n - 1)
                j = np.clip(np.round((np.log2(sizes) - top) / step), 1 - n, 0)
                errors.append(np.square(np.exp2(top + step * j) - sizes).sum())
        best += min(errors)
    assert np.square(coded(w, how)[1] - w).sum() <= 1.05 * best


@SEEDS
@BITS
def test_a_level_is_a_constant_of_a_fraction_shifted_by_whole_bits(seed: int, dtype: str) -> None:
    """``s (q + z) = f + r``: ``2^(f + r)`` is ``2^r``, one of few, shifted by f. In integers of 16 fractional bits the
    product is that of the levels, to what the constants are rounded by; of these levels it is exact."""
    w, how = weights(seed)[:16, :64], scheme(dtype)
    codes, back, params = coded(w, how)
    n = how.qmax + 1
    octaves = 2 + params.beside["row"] / 2, 2 + params.beside["negative_row"] / 2
    q = np.where(codes >= 0, codes - how.qmax, -1 - codes - (n - 1))  # 0 for the largest of a sign, down to 1 - n
    step, top = (np.where(codes >= 0, a[:, None], b[:, None]) for a, b in (
        (octaves[0] / (n - 1), octaves[1] / (n - 1)), (params.scale, params.beside["negative"]),
    ))  # fmt: skip
    exponent = step * q + np.log2(top.astype(np.float64))
    f = np.floor(exponent).astype(np.int64)
    constants = np.rint(np.exp2(exponent - f) * 2**16).astype(np.int64)
    assert len(np.unique(constants)) <= 2 * n * len(w)
    np.testing.assert_allclose(np.sign(codes + 0.5) * constants * np.exp2(f - 16), back, rtol=2**-16)
    shifted = np.sign(codes + 0.5).astype(np.int64) * (constants << (f - f.min()))
    x = np.random.default_rng(seed).integers(-128, 128, (8, 64))
    product = (x @ shifted.T) * np.exp2(f.min() - 16)  # whole numbers alone, scaled once
    exact = x @ back.T.astype(np.float64)
    assert (np.abs(product - exact) <= 2**-16 * (np.abs(x) @ np.abs(back.T))).all()


@pytest.mark.parametrize("dtype", ["int8", "uint4", "int2"])
def test_other_types_are_refused_by_name(dtype: str) -> None:
    with pytest.raises(BadRequest, match=f"tlq.*not {dtype}"):
        TwinLog().fit(weights(0)[:2], Scheme(dtype, per_channel(0), quantizer="tlq"))


def test_channels_of_one_sign_of_zeros_and_of_tiny_numbers() -> None:
    w = np.array([[1, 2, 4, 8], [-1, -2, -4, -8], [0, 0, 0, 0], [1e-30, -1e-30, 0, 1e-30]], np.float32)
    _, back, params = coded(w, scheme(observer="minmax"))
    assert np.isfinite(params.scale).all() and (params.scale > 0).all() and (params.beside["negative"] > 0).all()
    np.testing.assert_array_equal(np.sign(back), np.sign(w))
    assert np.abs(back - w).max() < 0.25
