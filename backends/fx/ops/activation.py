"""Activation functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from graphpress.backends.fx.operands import Tensor

_SELU_ALPHA, _SELU_GAMMA = 1.6732632423543772, 1.0507009873554805  # torch's; the standard's are these in float32
_SAME = 1e-7  # attributes are float32


def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.celu(x, alpha)


def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """clamp(alpha x + beta, 0, 1)."""
    if beta == 0.5 and abs(alpha - 1 / 6) < _SAME and x.dtype != torch.float64:
        return F.hardsigmoid(x)
    return torch.clamp(alpha * x + beta, 0, 1)


def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


def prelu_1(x: Tensor, slope: Tensor) -> Tensor:
    """Before opset 7 the slope is one number, or one for each channel."""
    return F.prelu(x, slope.reshape(-1))


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """The slope is broadcast as in numpy; torch's kernel knows one slope, or one for each channel."""
    channels = slope.dim() == x.dim() - 1 and slope.shape[0] == slope.numel()
    if x.is_floating_point() and (slope.numel() == 1 or channels):
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, slope * x, x)


def selu_1(x: Tensor, *, alpha: float = 1.6732, gamma: float = 1.0507) -> Tensor:
    return gamma * F.elu(x, alpha)


def selu(x: Tensor, *, alpha: float = _SELU_ALPHA, gamma: float = _SELU_GAMMA) -> Tensor:
    if abs(alpha - _SELU_ALPHA) < _SAME and abs(gamma - _SELU_GAMMA) < _SAME:
        return F.selu(x)
    return gamma * F.elu(x, alpha)


def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """Zero within +-lambd; what is beyond moves towards zero by ``bias``."""
    if x.is_floating_point() and lambd >= 0 and bias in (0.0, lambd):
        return F.softshrink(x, lambd) if bias else F.hardshrink(x, lambd)
    wide = x if x.is_floating_point() else x.double()
    return torch.where(wide < -lambd, wide + bias, torch.where(wide > lambd, wide - bias, 0.0)).to(x.dtype)


def softplus(x: Tensor) -> Tensor:
    """Beyond 40 it is the identity in double precision, too; torch's own threshold is 20."""
    return F.softplus(x, threshold=40)


def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


def swiglu(a: Tensor, b: Tensor, *, alpha: float = 1.0) -> Tensor:
    return swish(a, alpha=alpha) * b


def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.threshold(x, alpha, 0.0)


OPS: dict[str, Callable[..., Any]] = {
    "Celu": celu, "Elu": elu, "Gelu": gelu, "HardSigmoid": hard_sigmoid, "HardSwish": F.hardswish,
    "LeakyRelu": leaky_relu, "Mish": F.mish, "PRelu": prelu_1, "PRelu@7": prelu, "Relu": F.relu, "Selu": selu_1,
    "Selu@6": selu, "Shrink": shrink, "Sigmoid": torch.sigmoid, "Softplus": softplus, "Softsign": F.softsign,
    "SwiGLU": swiglu, "Swish": swish, "Tanh": torch.tanh, "ThresholdedRelu": thresholded_relu,
}  # fmt: skip
