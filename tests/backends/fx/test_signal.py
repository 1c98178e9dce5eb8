"""Fourier transforms against numpy's: lengths, axes, halves, gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from graphpress.backends.fx.ops import signal
from graphpress.errors import Unsupported
from tests.backends.fx.single import doubles, in_torch, module, normal, same

REAL, COMPLEX = normal(2, 5, 6, 1), normal(2, 5, 6, 2, seed=1)
TOLERANCE = 5e-6  # of sums of six numbers of order 1 in float32


def _parts(z: np.ndarray) -> np.ndarray:
    return np.stack([z.real, z.imag], -1).astype(np.float32)


def _numbers(x: np.ndarray) -> np.ndarray:
    return x[..., 0] if x.shape[-1] == 1 else x[..., 0] + 1j * x[..., 1]


def _dft(x: np.ndarray, length: int | None, axis: int, inverse: int, onesided: int) -> np.ndarray:
    axis = axis + x.ndim if axis < 0 else axis
    if inverse and onesided:
        return np.fft.irfft(_numbers(x), length, axis)[..., None].astype(np.float32)
    function = np.fft.rfft if onesided else np.fft.ifft if inverse else np.fft.fft
    return _parts(function(_numbers(x), length, axis))


@pytest.mark.parametrize("x", [REAL, COMPLEX], ids=["real", "complex"])
@pytest.mark.parametrize("axis", [0, 1, -2, -3])
@pytest.mark.parametrize("length", [None, 4, 9])
@pytest.mark.parametrize("inverse", [0, 1])
@pytest.mark.parametrize("onesided", [0, 1])
def test_dft(x: np.ndarray, axis: int, length: int | None, inverse: int, onesided: int) -> None:
    if onesided and (x is COMPLEX) != bool(inverse):
        pytest.skip("the standard has no such transform")
    options: dict[str, Any] = {"inverse": inverse, "onesided": onesided}
    expected = _dft(x, length, axis, inverse, onesided)
    given = None if length is None else np.array(length)
    same(in_torch("DFT", x, given, np.array(axis), opset=20, **options), expected, atol=TOLERANCE)
    same(in_torch("DFT", x, given, axis=axis, opset=17, **options), expected, atol=TOLERANCE)


def test_default_axes() -> None:
    same(in_torch("DFT", REAL, opset=20), _dft(REAL, None, -2, 0, 0), atol=TOLERANCE)
    same(in_torch("DFT", REAL, opset=17), _dft(REAL, None, 1, 0, 0), atol=TOLERANCE)


def test_half_precision_is_transformed_in_single() -> None:
    x = REAL.astype(np.float16)
    expected = _dft(x.astype(np.float32), None, 1, 0, 0).astype(np.float16)
    same(in_torch("DFT", x, opset=17), expected, atol=5e-3, rtol=1e-3)  # one step of float16


def test_half_a_complex_transform_is_refused() -> None:
    with pytest.raises(Unsupported, match="one-sided"):
        signal.dft(torch.ones(1, 4, 2), onesided=1)
    with pytest.raises(Unsupported, match="one-sided"):
        signal.stft(torch.ones(1, 4, 2), 1, frame_length=2)


@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize("parts", [1, 2])
def test_stft(onesided: int, parts: int) -> None:
    if onesided and parts == 2:
        pytest.skip("the standard has no such transform")
    x, window = normal(2, 20, parts), np.hanning(8).astype(np.float32)
    for step, shape, length in ((3, window, 8), (3, window, None), (4, None, 7)):
        size = length or 8
        starts = range(0, 20 - size + 1, step)
        frames = np.stack([x[:, i : i + size] * (1 if shape is None else shape[:, None]) for i in starts], 1)
        expected = _dft(frames, None, 2, 0, onesided)
        inputs = (x, np.array(step), shape, None if length is None else np.array(length))
        same(in_torch("STFT", *inputs, opset=17, onesided=onesided), expected, atol=TOLERANCE)
        same(in_torch("STFT", *inputs, constants=[1], opset=17, onesided=onesided), expected, atol=TOLERANCE)


def test_stft_of_the_whole_signal() -> None:
    x = normal(1, 6, 1)
    same(in_torch("STFT", x, np.array(1), opset=17)[:, 0], _dft(x, None, 1, 0, 1), atol=TOLERANCE)


def test_gradients() -> None:
    check = torch.autograd.gradcheck
    assert check(lambda x: signal.dft(x, 5, 1), doubles(1, 4, 1))
    assert check(lambda x: signal.dft(x, None, 1, inverse=1), doubles(1, 4, 2))
    assert check(lambda x: signal.dft(x, None, 1, onesided=1), doubles(1, 4, 1))
    assert check(lambda x, w: signal.stft(x, 2, w), (doubles(1, 6, 1), doubles(4, seed=1)))


@pytest.mark.parametrize("op", ["DFT", "STFT"])
def test_no_graph_breaks(op: str) -> None:
    x = torch.from_numpy(normal(1, 8, 1))
    inputs = (x.numpy(), None) if op == "DFT" else (x.numpy(), np.array(2), None, np.array(4))
    built = module(op, *inputs, constants=[1, 3][: len(inputs) // 2 * (op == "STFT")], opset=17)
    torch._dynamo.reset()
    compiled = torch.compile(built, fullgraph=True, dynamic=True, backend="eager")
    same(compiled(x).detach().numpy(), built(x).detach().numpy())
