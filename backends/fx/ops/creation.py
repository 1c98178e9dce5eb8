"""Tensors from numbers: ranges, random numbers, windows.

With a ``seed`` a call always gives the same numbers on the same device; they are not those of other runtimes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import onnx_ir as ir
import torch

from graphpress.backends.fx import dtypes
from graphpress.backends.fx.operands import Float, Int, Tensor

Types: TypeAlias = tuple[str | None, ...]


def _dtype(number: int) -> torch.dtype:
    return dtypes.torch_dtype(ir.DataType(number).name)


def _device(like: Tensor | None) -> torch.device | None:
    return None if like is None else like.device


# -- ranges ------------------------------------------------------------------------------------------------------------


def range_(
    start: Float, limit: Float, delta: Float, *, stash_type: int = 1, in_types: Types = (), like: Tensor | None = None
) -> Tensor:
    """start + i delta up to before ``limit``; empty where ``limit`` lies the other way."""
    name = next((t for t in in_types if t), None)
    dtype = dtypes.torch_dtype(name) if name else torch.float32 if isinstance(delta, float) else torch.int64
    if not dtype.is_floating_point:
        count = torch.sym_max(-(-(limit - start) // delta), 0)
        return torch.arange(count, dtype=dtype, device=_device(like)) * delta + start
    count = max(math.ceil((limit - start) / delta), 0)
    work = torch.float64 if dtype.itemsize > 2 else _dtype(stash_type)
    return (torch.arange(count, device=_device(like)).to(work) * delta + start).to(dtype)


# -- random numbers ----------------------------------------------------------------------------------------------------


def _generator(seed: float | None, device: torch.device | None) -> torch.Generator | None:
    if seed is None:
        return None
    return torch.Generator(device or "cpu").manual_seed(int.from_bytes(struct.pack("<f", seed), "little"))


def random_normal(
    *,
    shape: Sequence[int],
    dtype: int = 1,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
    like: Tensor | None = None,
) -> Tensor:
    return _normal(shape, _dtype(dtype), _device(like), mean, scale, seed)


def random_normal_like(
    x: Tensor, *, dtype: int | None = None, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
) -> Tensor:
    return _normal(x.shape, x.dtype if dtype is None else _dtype(dtype), x.device, mean, scale, seed)


def _normal(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device | None, mean: float, scale: float, seed: float | None
) -> Tensor:
    return torch.randn(shape, generator=_generator(seed, device), dtype=dtype, device=device) * scale + mean


def random_uniform(
    *,
    shape: Sequence[int],
    dtype: int = 1,
    low: float = 0.0,
    high: float = 1.0,
    seed: float | None = None,
    like: Tensor | None = None,
) -> Tensor:
    return _uniform(shape, _dtype(dtype), _device(like), low, high, seed)


def random_uniform_like(
    x: Tensor, *, dtype: int | None = None, low: float = 0.0, high: float = 1.0, seed: float | None = None
) -> Tensor:
    return _uniform(x.shape, x.dtype if dtype is None else _dtype(dtype), x.device, low, high, seed)


def _uniform(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device | None, low: float, high: float, seed: float | None
) -> Tensor:
    return torch.rand(shape, generator=_generator(seed, device), dtype=dtype, device=device) * (high - low) + low


def bernoulli(x: Tensor, *, dtype: int | None = None, seed: float | None = None) -> Tensor:
    """1 with probability ``x``, else 0."""
    drawn = torch.bernoulli(x, generator=_generator(seed, x.device))
    return drawn if dtype is None else drawn.to(_dtype(dtype))


def multinomial(x: Tensor, *, dtype: int = 6, sample_size: int = 1, seed: float | None = None) -> Tensor:
    """Classes drawn by their unnormalised log-probabilities (batch, class), with replacement."""
    chances = torch.softmax(x.float() if x.element_size() == 2 else x, -1)
    return torch.multinomial(chances, sample_size, True, generator=_generator(seed, x.device)).to(_dtype(dtype))


# -- windows -----------------------------------------------------------------------------------------------------------


def blackman_window(size: Int, *, periodic: int = 1, output_datatype: int = 1, like: Tensor | None = None) -> Tensor:
    return _cosines(size, (0.42, -0.5, 0.08), periodic, output_datatype, like)


def hann_window(size: Int, *, periodic: int = 1, output_datatype: int = 1, like: Tensor | None = None) -> Tensor:
    return _cosines(size, (0.5, -0.5), periodic, output_datatype, like)


def hamming_window(size: Int, *, periodic: int = 1, output_datatype: int = 1, like: Tensor | None = None) -> Tensor:
    return _cosines(size, (25 / 46, -21 / 46), periodic, output_datatype, like)


def _cosines(size: int, weights: Sequence[float], periodic: int, output_datatype: int, like: Tensor | None) -> Tensor:
    """The sum of weights[k] cos(2 pi k n / N); N is ``size``, of a symmetric window one less."""
    angle = torch.arange(size, dtype=torch.float64, device=_device(like)) * (2 * math.pi)
    angle = angle / (size if periodic else size - 1)
    values = torch.stack([w * torch.cos(k * angle) for k, w in enumerate(weights)]).sum(0)
    dtype = _dtype(output_datatype)
    return values if dtype == torch.float64 else values.float().to(dtype)  # an integer's 1 is no 0.9999999999999999


def mel_weight_matrix(
    num_mel_bins: Int,
    dft_length: Int,
    sample_rate: Int,
    lower_edge_hertz: Float,
    upper_edge_hertz: Float,
    *,
    output_datatype: int = 1,
    like: Tensor | None = None,
) -> Tensor:
    """Triangles over (spectrogram bin, mel bin), evenly spaced on the mel scale 2595 log10(1 + f / 700)."""
    low, high = (2595 * math.log10(1 + hertz / 700) for hertz in (lower_edge_hertz, upper_edge_hertz))
    mels = torch.arange(num_mel_bins + 2, dtype=torch.float64, device=_device(like))
    hertz = 700 * (10 ** ((mels * ((high - low) / (num_mel_bins + 2)) + low) / 2595) - 1)
    edges = torch.floor((dft_length + 1) * hertz / sample_rate)
    lower, center, upper = edges[:-2], edges[1:-1], edges[2:]
    bins = torch.arange(dft_length // 2 + 1, dtype=torch.float64, device=_device(like)).unsqueeze(1)
    rising = torch.where(center == lower, 1.0, (bins - lower) / (center - lower).clamp(min=1))
    falling = (upper - bins) / (upper - center).clamp(min=1)
    weights = torch.where((bins >= lower) & (bins <= center), rising, 0.0)
    weights = torch.where((bins >= center) & (bins < upper), falling, weights)
    return weights.to(_dtype(output_datatype))


OPS: dict[str, Callable[..., Any]] = {
    "Range": range_, "RandomNormal": random_normal, "RandomNormalLike": random_normal_like,
    "RandomUniform": random_uniform, "RandomUniformLike": random_uniform_like, "Bernoulli": bernoulli,
    "Multinomial": multinomial, "BlackmanWindow": blackman_window, "HannWindow": hann_window,
    "HammingWindow": hamming_window, "MelWeightMatrix": mel_weight_matrix,
}  # fmt: skip
