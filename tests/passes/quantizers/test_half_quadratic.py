"""HQQ: few large errors, by brute force and by planted grids, in numpy as in torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from graphpress.errors import BadRequest
from graphpress.passes.quantizers.affine import Affine
from graphpress.passes.quantizers.half_quadratic import shrunk
from graphpress.passes.quantizers.power import Power
from graphpress.types import Scheme, per_channel

SCHEMES = [
    Scheme("int4", per_channel(0)), Scheme("uint4", per_channel(0), symmetric=False), Scheme("int3", per_channel(0)),
    Scheme("uint2", per_channel(0), symmetric=False),
]  # fmt: skip


def weights(seed: int) -> np.ndarray:
    """With some large ones, and off centre."""
    rng = np.random.default_rng(seed)
    return (rng.standard_t(4, size=(24, 64)) / 30 + 0.01).astype(np.float32)


def lost(w: np.ndarray, scheme: Scheme, observer: str) -> np.ndarray:
    """Of each row, sum |w - w^|^0.7."""
    scheme = replace(scheme, observer=observer)
    params = Affine().fit(w, scheme)
    codes = Affine().quantize(w, params, scheme)
    return (np.abs(Affine().dequantize(codes, params, scheme).astype(np.float64) - w) ** 0.7).sum(1)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_it_loses_less_than_both_others_by_its_norm(scheme: Scheme, seed: int) -> None:
    w = weights(seed)
    hqq, mse, minmax = (lost(w, scheme, observer) for observer in ("hqq", "mse", "minmax"))
    assert (hqq <= mse * (1 + 1e-5)).all()
    assert hqq.sum() < 0.99 * mse.sum() and hqq.sum() < 0.96 * minmax.sum()


def test_what_is_taken_for_an_error_by_its_formula() -> None:
    off = np.array([-0.9, -0.1, 0.0, 0.2, 0.5])
    expected = [-(0.9 - 0.9**-0.3 / 10), 0.0, 0.0, 0.2 - 0.2**-0.3 / 10, 0.5 - 0.5**-0.3 / 10]
    np.testing.assert_allclose(shrunk(off, 10.0), expected, rtol=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_planted_grid_is_found_though_some_weights_lie_far_off_it(seed: int) -> None:
    """The squared error pulls the step after the few that are off; this one does not."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-7, 8, (8, 256))
    w = codes * 0.1 + rng.normal(size=codes.shape) * 0.002
    w[:, :6] += 0.04
    w = w.astype(np.float32)
    steps = {}
    for observer in ("hqq", "mse"):
        steps[observer] = Affine().fit(w, Scheme("int4", per_channel(0), observer=observer)).scale
    off = {name: np.abs(s / 0.1 - 1) for name, s in steps.items()}
    assert (off["hqq"] < 0.004).all() and off["hqq"].mean() < 0.5 * off["mse"].mean()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_in_torch_as_in_numpy(scheme: Scheme) -> None:
    torch = pytest.importorskip("torch")
    w, scheme = weights(3), replace(scheme, observer="hqq")
    here, there = Affine().fit(w, scheme), Affine().fit(torch.from_numpy(w), scheme)
    assert np.isclose(there.scale.numpy(), here.scale, rtol=1e-4).mean() > 0.9  # a code may fall either way
    assert np.isclose(lost(w, scheme, "hqq").sum(), lost(w, scheme, "hqq").sum())


def test_rows_of_zeros_and_of_one_number() -> None:
    w = np.zeros((3, 16), np.float32)
    w[1] = 0.25
    w[2, 0] = -3
    for scheme in SCHEMES:
        scheme = replace(scheme, observer="hqq")
        params = Affine().fit(w, scheme)
        found = Affine().dequantize(Affine().quantize(w, params, scheme), params, scheme)
        assert np.isfinite(params.scale).all() and (params.scale > 0).all()
        assert not found[0].any()
        assert np.abs(found[1:] - w[1:]).max() <= 0.2


def test_formats_that_have_it_not_say_so() -> None:
    with pytest.raises(BadRequest, match="'hqq' is not for weights"):
        Power().fit(weights(0), Scheme("int4", per_channel(0), observer="hqq", quantizer="power"))
