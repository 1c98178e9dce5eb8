"""Dynamic quantization of activations in few passes: the operators' codes, held as uint8 for an unsigned kernel.

Each comes twice: as plain torch, which a compiler fuses, and in the fewest passes over memory for eager mode on a CPU.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch

from graphpress.backends.fx.kernels.base import traced

_LARGEST, _TINY = (float(v) for v in (np.finfo(np.float32).max, np.finfo(np.float32).tiny))
# Added to a float32 below 2^22 it leaves the nearest integer, halves to even, in the low bits: round and shift in one.
# An odd integer added with it would turn halves the other way.
_ROUNDER = 1.5 * 2.0**23


MIDDLE = 128  # the zero point of symmetric codes held as uint8
# Codes as uint8, scale, zero point. In eager mode on a CPU the scale and zero point of a whole tensor are numbers.
Quantized: TypeAlias = tuple[torch.Tensor, Any, Any]


def quantize_tensor(x: torch.Tensor) -> Quantized:
    """Codes for the kernels of this package, by one scale and zero point."""
    x = x.float()
    return by_tensor(x) if x.device.type != "cpu" or traced(x) else by_tensor_eager(x)


def quantize_token(x: torch.Tensor) -> Quantized:
    """Codes for the kernels of this package, by one scale for each row."""
    x = x.float()
    return (*(by_token(x) if x.device.type != "cpu" or traced(x) else by_token_eager(x)), MIDDLE)


def by_tensor(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(uint8 codes, scale, zero point) of a float32 tensor: DynamicQuantizeLinear's, as ONNX Runtime has it."""
    low, high = torch.aminmax(x)
    low = low.clamp(max=0.0)
    scale = (high.clamp(min=0.0) - low) / 255.0
    scale = torch.where(scale == 0.0, 1.0, scale)
    zero = (-low / scale).round().clamp(0.0, 255.0)
    codes = (torch.div(x, scale).round() + zero).clamp(0.0, 255.0).to(torch.uint8)
    return codes, scale, zero.to(torch.int32)


def by_token(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes, one scale for each row) of a float32 tensor: DynamicQuantizeToken's, plus 128 as uint8."""
    scale = _row_scale(x)
    return (torch.div(x, scale).round() + 128.0).to(torch.uint8), scale


def by_tensor_eager(x: torch.Tensor) -> tuple[torch.Tensor, float, int]:
    """As :func:`by_tensor`, with numbers on the host: tensors of one element cost more than what they hold.

    A double rounded to float32 after each operation is what float32 gives (Figueroa, 1995).
    """
    low, high = (v.item() for v in torch.aminmax(x))
    low, high = min(low, 0.0), max(high, 0.0)
    if not 0.0 < high - low <= _LARGEST:
        codes, constant, point = by_tensor(x)
        return codes, constant.item(), point.item()
    scale = _float32(_float32(high - low) / 255.0) or 1.0
    zero = min(round(_float32(-low / scale)), 255)
    y = torch.div(x, scale)
    if round(_float32(high / scale)) + zero > 255 or round(_float32(low / scale)) + zero < 0:
        y.clamp_(-zero, 255 - zero)
    odd = zero & 1
    codes = y.add_(_ROUNDER + zero - odd).view(torch.int32).to(torch.int8).view(torch.uint8)
    return codes.add_(1) if odd else codes, scale, zero


def by_token_eager(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`by_token`."""
    scale = _row_scale(x)
    return torch.div(x, scale).add_(_ROUNDER + 128.0).view(torch.int32).to(torch.int8).view(torch.uint8), scale


def _row_scale(x: torch.Tensor) -> torch.Tensor:
    # Two reductions read less than absolute values written and read again.
    largest = torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True))
    return (largest / 127.0).clamp_min(_TINY)


def _float32(value: float) -> float:
    return float(np.float32(value))
