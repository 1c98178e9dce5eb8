"""Normalizations, softmax, dropout."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from graphpress.backends.fx.operands import Float, Int, Tensor
from graphpress.errors import Unsupported

# -- by batch ------------------------------------------------------------------------------------------------------------


def batch_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor,
    *, epsilon: float = 1e-5, momentum: float = 0.9, training_mode: int = 0, outputs: int = 1,
) -> tuple[Tensor, ...]:  # fmt: skip
    """By the statistics given; in training mode by those of the batch, whose running means are further outputs."""
    if not training_mode:
        return (F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon),)
    axes = [0, *range(2, x.dim())]
    own_mean, own_variance = x.mean(axes), x.var(axes, unbiased=False)
    y = F.batch_norm(x, own_mean, own_variance, scale, bias, False, 0.0, epsilon)
    running = (mean * momentum + own_mean * (1 - momentum), variance * momentum + own_variance * (1 - momentum))
    return (y, *(r.to(mean.dtype) for r in running))


def batch_normalization_9(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor,
    *, epsilon: float = 1e-5, momentum: float = 0.9, outputs: int = 1,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Opsets 9 to 13: training is meant where further outputs are asked for."""
    if outputs > 1:
        raise Unsupported("BatchNormalization below opset 14 is not computed in training mode")
    return batch_normalization(x, scale, bias, mean, variance, epsilon=epsilon)


def batch_normalization_1(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor,
    *, epsilon: float = 1e-5, momentum: float = 0.9, is_test: int = 0, spatial: int = 1,
    consumed_inputs: list[int] | None = None, opset: int = 7, outputs: int = 1,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Opsets 1 to 8, in inference. Without ``spatial`` there are statistics for each place of the picture."""
    if outputs > 1 or (opset < 7 and not is_test):
        raise Unsupported("BatchNormalization below opset 14 is not computed in training mode")
    if spatial:
        return batch_normalization(x, scale, bias, mean, variance, epsilon=epsilon)
    return ((x - mean) * torch.rsqrt(variance + epsilon) * scale + bias,)


def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.instance_norm(x, None, None, scale, bias, True, 0.0, epsilon)


def instance_normalization_1(
    x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5, consumed_inputs: list[int] | None = None
) -> Tensor:
    return instance_normalization(x, scale, bias, epsilon=epsilon)


def mean_variance_normalization(x: Tensor, *, axes: list[int] | None = None) -> Tensor:
    """As the standard's function has it: 1e-9 is added to the deviation."""
    axes = [0, 2, 3] if axes is None else axes
    mean = x.mean(axes, keepdim=True)
    deviation = ((x * x).mean(axes, keepdim=True) - mean * mean).sqrt()
    return (x - mean) / (deviation + 1e-9)


# -- by sample -----------------------------------------------------------------------------------------------------------


def layer_normalization(
    x: Tensor, scale: Tensor, bias: Tensor | None = None,
    *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1, outputs: int = 1,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Over all axes from ``axis`` on; mean and inverse deviation are the further outputs."""
    shape = x.shape[axis:]
    if outputs == 1 and scale.shape == shape and (bias is None or bias.shape == shape):
        return (F.layer_norm(x, shape, scale, bias, epsilon),)
    axes = list(range(axis % x.dim(), x.dim()))
    wide = _stashed(x, stash_type)
    mean = wide.mean(axes, keepdim=True)
    centred = wide - mean
    inverse = torch.rsqrt((centred * centred).mean(axes, keepdim=True) + epsilon)
    y = (centred * inverse).to(x.dtype) * scale
    return (y if bias is None else y + bias, mean, inverse)


def rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Over all axes from ``axis`` on; torch's kernel computes half precision in float32 as well."""
    shape = x.shape[axis:]
    if scale.shape == shape and scale.dtype == x.dtype:
        return F.rms_norm(x, shape, scale, epsilon)
    axes = list(range(axis % x.dim(), x.dim()))
    wide = _stashed(x, stash_type)
    return (wide * torch.rsqrt((wide * wide).mean(axes, keepdim=True) + epsilon)).to(x.dtype) * scale


def group_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    return F.group_norm(x, num_groups, scale, bias, epsilon)


def group_normalization_18(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5
) -> Tensor:
    """Scale and bias are those of groups, not of channels."""
    each = x.shape[1] // num_groups
    return F.group_norm(x, num_groups, scale.repeat_interleave(each), bias.repeat_interleave(each), epsilon)


def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """Zeros stay zeros."""
    norm = x.abs().sum(axis, keepdim=True) if p == 1 else x.pow(2).sum(axis, keepdim=True).sqrt()
    return torch.where(norm == 0, 0.0, x / norm)


def lrn(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    """Squares of ``size`` neighbouring channels, of an even size one more above."""
    squares = F.pad((x * x).flatten(2).unsqueeze(1), (0, 0, (size - 1) // 2, size // 2))
    mean = F.avg_pool2d(squares, (size, 1), stride=1).squeeze(1).reshape(x.shape)
    return x / (bias + alpha * mean).pow(beta)


def _stashed(x: Tensor, stash_type: int) -> Tensor:
    return x.float() if stash_type == 1 and x.dtype in (torch.float16, torch.bfloat16) else x


# -- softmax -------------------------------------------------------------------------------------------------------------


def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.log_softmax(x, axis)


def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """1 at the first of the largest."""
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


def _flat(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Opsets before 13: over all axes from ``axis`` on together."""

    def legacy(x: Tensor, *, axis: int = 1) -> Tensor:
        axis = axis % x.dim() if x.dim() else 0
        rows = math.prod(x.shape[:axis])
        return function(x.reshape(rows, -1), axis=1).reshape(x.shape)

    legacy.__name__ = legacy.__qualname__ = name  # so that generated code can import it
    return legacy


softmax_1, log_softmax_1 = _flat("softmax_1", softmax), _flat("log_softmax_1", log_softmax)
hardmax_1 = _flat("hardmax_1", hardmax)

# -- dropout -------------------------------------------------------------------------------------------------------------


def dropout(
    x: Tensor, ratio: Float | None = None, training_mode: Int | None = None, *, seed: int | None = None, outputs: int = 1
) -> tuple[Tensor, ...]:
    """Nothing is dropped outside of training; the mask is the second output."""
    ratio = 0.5 if ratio is None else ratio
    if not training_mode or ratio == 0:
        return (x, torch.ones_like(x, dtype=torch.bool))
    mask = torch.rand_like(x, dtype=torch.float32) >= ratio
    return (x * mask / (1 - ratio), mask)


def dropout_1(
    x: Tensor, *, ratio: float = 0.5, is_test: int = 1, consumed_inputs: list[int] | None = None, outputs: int = 1
) -> tuple[Tensor, ...]:
    """Opsets 1 to 11, in inference."""
    return (x, torch.ones_like(x, dtype=torch.bool))


OPS: dict[str, Callable[..., Any]] = {
    "BatchNormalization": batch_normalization_1, "BatchNormalization@9": batch_normalization_9,
    "BatchNormalization@14": batch_normalization,
    "InstanceNormalization": instance_normalization_1, "InstanceNormalization@6": instance_normalization,
    "MeanVarianceNormalization": mean_variance_normalization, "LayerNormalization": layer_normalization,
    "RMSNormalization": rms_normalization, "GroupNormalization": group_normalization_18,
    "GroupNormalization@21": group_normalization, "LpNormalization": lp_normalization, "LRN": lrn,
    "Softmax": softmax_1, "Softmax@13": softmax, "LogSoftmax": log_softmax_1, "LogSoftmax@13": log_softmax,
    "Hardmax": hardmax_1, "Hardmax@13": hardmax, "Dropout": dropout_1, "Dropout@12": dropout,
}  # fmt: skip
