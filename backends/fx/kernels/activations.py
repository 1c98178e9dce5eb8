"""Dynamic quantization of activations in few passes: codes as the operators give them, held for an unsigned kernel."""

from __future__ import annotations

import numpy as np
import torch

_LARGEST = float(np.finfo(np.float32).max)
_TINY = torch.finfo(torch.float32).tiny


def per_tensor(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(uint8 codes, scale, zero point) of a float32 tensor: DynamicQuantizeLinear's, as ONNX Runtime has it.

    The conversion to uint8 is slow in torch, that to int8 is not: hence the way round by codes less 128.
    """
    low, high = torch.aminmax(x)
    low = low.clamp(max=0.0)
    scale = (high.clamp(min=0.0) - low) / 255.0
    scale = torch.where(scale == 0.0, 1.0, scale)
    zero = (-low / scale).round().clamp(0.0, 255.0)
    codes = torch.div(x, scale).round_().add_(zero - 128.0).clamp_(-128.0, 127.0).to(torch.int8)
    return codes.view(torch.uint8).bitwise_xor_(128), scale, zero.to(torch.int32)


def per_tensor_on_host(x: torch.Tensor) -> tuple[torch.Tensor, float, int]:
    """The same with numbers for a tensor on the CPU: tensors of one element cost more than what they hold.

    A double rounded to float32 after each operation is what float32 gives (Figueroa, 1995).
    """
    low, high = (v.item() for v in torch.aminmax(x))
    low = min(low, 0.0)
    span = max(high, 0.0) - low
    if not 0.0 < span <= _LARGEST:
        codes, scale, zero = per_tensor(x)
        return codes, scale.item(), zero.item()
    number = float(np.float32(float(np.float32(span)) / 255.0)) or 1.0
    point = min(round(float(np.float32(-low / number))), 255)
    codes = torch.div(x, number).round_().add_(float(point - 128)).clamp_(-128.0, 127.0).to(torch.int8)
    return codes.view(torch.uint8).bitwise_xor_(128), number, point


def per_token(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(int8 codes, one scale for each row) of a float32 tensor: DynamicQuantizeToken's."""
    # Two reductions read less than the absolute values written and read again.
    largest = torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True))
    scale = (largest / 127.0).clamp_min(_TINY)
    return torch.div(x, scale).round_().to(torch.int8), scale
