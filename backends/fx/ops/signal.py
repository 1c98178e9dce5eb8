"""Fourier transforms. Complex numbers have a last axis of real and imaginary part; real ones one of size 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from graphpress.backends.fx.operands import Int, Tensor
from graphpress.errors import Unsupported


def dft(x: Tensor, dft_length: Int | None = None, axis: Int = -2, *, inverse: int = 0, onesided: int = 0) -> Tensor:
    """Along one axis, zero-padded or cut to ``dft_length``; the inverse divides by it.

    ``onesided`` gives the first half of a real signal's transform, or takes it and gives the real signal.
    """
    axis = axis + x.dim() if axis < 0 else axis
    wide = x.float() if x.element_size() == 2 else x
    if inverse and onesided:
        return torch.fft.irfft(_complex(wide), dft_length, axis).unsqueeze(-1).to(x.dtype)
    if onesided:
        found = torch.fft.rfft(_real(wide), dft_length, axis)
    else:
        signal = wide.squeeze(-1) if x.shape[-1] == 1 else _complex(wide)
        found = (torch.fft.ifft if inverse else torch.fft.fft)(signal, dft_length, axis)
    return torch.view_as_real(found.resolve_conj()).to(x.dtype)


def dft_17(x: Tensor, dft_length: Int | None = None, *, axis: int = 1, inverse: int = 0, onesided: int = 0) -> Tensor:
    """The axis is an attribute."""
    return dft(x, dft_length, axis, inverse=inverse, onesided=onesided)


def stft(
    signal: Tensor,
    frame_step: Int,
    window: Tensor | None = None,
    frame_length: Int | None = None,
    *,
    onesided: int = 1,
) -> Tensor:
    """(batch, frame, frequency, 2): the transform of each windowed frame of ``signal`` (batch, time, 1 or 2)."""
    if frame_length is None:
        frame_length = signal.shape[1] if window is None else window.shape[0]
    wide = signal.float() if signal.element_size() == 2 else signal
    frames = (_real(wide) if onesided or signal.shape[-1] == 1 else _complex(wide)).unfold(1, frame_length, frame_step)
    if window is not None:
        frames = frames * window.to(wide.dtype)
    found = torch.fft.rfft(frames) if onesided else torch.fft.fft(frames)
    return torch.view_as_real(found.resolve_conj()).to(signal.dtype)


def _real(x: Tensor) -> Tensor:
    if x.shape[-1] != 1:
        raise Unsupported("a one-sided transform of complex numbers is not defined")
    return x.squeeze(-1)


def _complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.contiguous() if x.shape[-1] == 2 else torch.cat((x, torch.zeros_like(x)), -1))


OPS: dict[str, Callable[..., Any]] = {"DFT": dft_17, "DFT@20": dft, "STFT": stft}
