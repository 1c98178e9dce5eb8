"""Normalizations, softmax, dropout."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F

from graphpress.backends.fx import dtypes
from graphpress.backends.fx.operands import Float, Int, Tensor

# -- by batch ----------------------------------------------------------------------------------------------------------


def batch_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor,
    *, epsilon: float = 1e-5, momentum: float = 0.9, training_mode: int = 0, outputs: int = 1, training: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    """By the statistics given; in training by those of the batch, whose running means are the further outputs.

    A node for inference follows the module: while that trains, the statistics given are updated as torch does it.
    """
    if not training_mode and training:
        return (F.batch_norm(x, mean, variance, scale, bias, True, 1 - momentum, epsilon),)
    if not training_mode:
        return (_by_statistics(x, scale, bias, mean, variance, epsilon),)
    y, running_mean, running_variance, _, _ = _by_batch(x, scale, bias, mean, variance, epsilon, momentum)
    return y, running_mean, running_variance


def batch_normalization_9(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor,
    *, epsilon: float = 1e-5, momentum: float = 0.9, outputs: int = 1, training: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Opsets 9 to 13: training is meant where further outputs are asked for."""
    if outputs == 1:
        return batch_normalization(
            x, scale, bias, mean, variance, epsilon=epsilon, momentum=momentum, training=training
        )
    return _by_batch(x, scale, bias, mean, variance, epsilon, momentum)


def batch_normalization_7(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor,
    *, epsilon: float = 1e-5, momentum: float = 0.9, spatial: int = 1, outputs: int = 1,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Without ``spatial`` there are statistics of each place of the picture."""
    if spatial:
        return batch_normalization_9(
            x, scale, bias, mean, variance, epsilon=epsilon, momentum=momentum, outputs=outputs
        )
    flat = [p.reshape(-1) for p in (scale, bias, mean, variance)]
    found = batch_normalization_9(x.flatten(1), *flat, epsilon=epsilon, momentum=momentum, outputs=outputs)
    return found[0].reshape(x.shape), *(s.reshape(mean.shape) for s in found[1:])


def batch_normalization_1(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor,
    *, epsilon: float = 1e-5, momentum: float = 0.9, is_test: int = 0, spatial: int = 1, outputs: int = 1,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Opsets 1 to 6: training is meant unless ``is_test``."""
    return batch_normalization_7(
        x, scale, bias, mean, variance, epsilon=epsilon, momentum=momentum, spatial=spatial,
        outputs=1 if is_test else max(outputs, 2),
    )  # fmt: skip


def _by_statistics(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, epsilon: float) -> Tensor:
    """torch's own where the types are those it takes, and no gradient is wanted of the statistics, to which it
    gives none."""
    types = {p.dtype for p in (scale, bias, mean, variance)}
    alike = types == {x.dtype} or (x.element_size() == 2 and types == {torch.float32})
    if alike and x.dim() > 1 and not (mean.requires_grad or variance.requires_grad):
        return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)
    shape = (-1, *(1,) * (x.dim() - 2))
    wide = functools.reduce(torch.promote_types, (x.dtype, *types), torch.float32)
    given, scale, bias, mean, variance = (t.to(wide) for t in (x, scale, bias, mean, variance))
    factor = scale * torch.rsqrt(variance + epsilon)
    return ((given - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)).to(x.dtype)


def _by_batch(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, epsilon: float, momentum: float
) -> tuple[Tensor, ...]:
    """(normalized, running mean and variance, those of the batch); the variance is that of the population."""
    wide = _wide(x)
    axes = [0, *range(2, x.dim())]
    own_variance, own_mean = torch.var_mean(wide, axes, correction=0)
    # not F.batch_norm, which refuses one value a channel
    y = torch.batch_norm(wide, scale.to(wide.dtype), bias.to(wide.dtype), None, None, True, 0.0, epsilon, True)
    means = mean * momentum + own_mean * (1 - momentum), variance * momentum + own_variance * (1 - momentum)
    statistics = (means[0], means[1], own_mean, own_variance)
    return y.to(x.dtype), *(s.to(mean.dtype) for s in statistics)


def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Each channel of each sample; unlike F.instance_norm also where it has one place."""
    return torch.group_norm(x, x.shape[1], scale, bias, epsilon)


def mean_variance_normalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    """As the standard's function has it: 1e-9 is added to the deviation."""
    wide = _wide(x)
    variance, mean = torch.var_mean(wide, tuple(axes), correction=0, keepdim=True)
    return ((wide - mean) / (variance.sqrt() + 1e-9)).to(x.dtype)


# -- by sample ---------------------------------------------------------------------------------------------------------


def layer_normalization(
    x: Tensor, scale: Tensor, bias: Tensor | None = None,
    *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1, outputs: int = 1,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Over all axes from ``axis`` on; mean and inverse deviation, of type ``stash_type``, are the further outputs.

    The mathematics is done in float32 at least, of doubles in float64.
    """
    shape = x.shape[axis:]
    if outputs == 1 and scale.shape == shape and (bias is None or bias.shape == shape):
        return (F.layer_norm(x, shape, scale, bias, epsilon),)
    axes = list(range(axis % x.dim(), x.dim()))
    wide = _wide(x)
    variance, mean = torch.var_mean(wide, axes, correction=0, keepdim=True)
    inverse = torch.rsqrt(variance + epsilon)
    y = ((wide - mean) * inverse).to(x.dtype) * scale
    stash = dtypes.torch_dtype(ir.DataType(stash_type).name)
    return y if bias is None else y + bias, mean.to(stash), inverse.to(stash)


def rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Over all axes from ``axis`` on, in float32 at least; the result has the scale's type."""
    shape = x.shape[axis:]
    if scale.shape == shape and scale.dtype == x.dtype:
        return F.rms_norm(x, shape, scale, epsilon)
    axes = list(range(axis % x.dim(), x.dim()))
    wide = _wide(x)
    return (wide * torch.rsqrt((wide * wide).mean(axes, keepdim=True) + epsilon)).to(scale.dtype) * scale


def group_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """torch computes in float32 at least; unlike F.group_norm also where a group has one place."""
    return torch.group_norm(x, num_groups, scale, bias, epsilon)


def group_normalization_18(x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5) -> Tensor:
    """Scale and bias are those of groups, not of channels."""
    each = x.shape[1] // num_groups
    scale, bias = (p.unsqueeze(1).expand(-1, each).reshape(-1) for p in (scale, bias))
    return torch.group_norm(x, num_groups, scale, bias, epsilon)


def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """Zeros stay zeros."""
    wide = _wide(x)
    norm = torch.linalg.vector_norm(wide, p, axis, keepdim=True)
    return (wide / norm.masked_fill(norm == 0, 1)).to(x.dtype)


def lrn(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    """By the squares of ``size`` neighbouring channels, of an even number one more behind."""
    wide = _wide(x)
    squares = (wide * wide).reshape(x.shape[0], 1, x.shape[1], -1)
    mean = F.avg_pool2d(F.pad(squares, (0, 0, (size - 1) // 2, size // 2)), (size, 1), stride=1).reshape(x.shape)
    return (wide / (bias + alpha * mean).pow(beta)).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.element_size() == 2 else x


# -- softmax -----------------------------------------------------------------------------------------------------------


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
        axis = axis + x.dim() if axis < 0 else axis
        if axis == x.dim() - 1:
            return function(x, axis=axis)
        matrix = x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
        return function(matrix, axis=1).reshape(x.shape)

    legacy.__name__ = legacy.__qualname__ = name  # so that generated code can import it
    return legacy


softmax_1, log_softmax_1 = _flat("softmax_1", softmax), _flat("log_softmax_1", log_softmax)
hardmax_1 = _flat("hardmax_1", hardmax)

# -- dropout -----------------------------------------------------------------------------------------------------------


def dropout(
    x: Tensor, ratio: Float = 0.5, training_mode: Int = 0,
    *, seed: int | None = None, outputs: int = 1, training: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    """(x, mask of what is kept): nothing is dropped unless the node or the module is in training."""
    if not (training_mode or training) or ratio == 0:
        return x, torch.ones_like(x, dtype=torch.bool)
    generator = None if seed is None else torch.Generator(x.device).manual_seed(seed)
    mask = torch.rand(x.shape, generator=generator, device=x.device) >= ratio
    wide = x.float() if x.element_size() == 1 else x
    return (wide * mask / (1 - ratio)).to(x.dtype), mask


def dropout_7(
    x: Tensor, *, ratio: float = 0.5, opset: int = 7, outputs: int = 1, training: bool = False
) -> tuple[Tensor, ...]:
    """Opsets 7 to 11, whose models are for inference. Up to opset 9 the mask has the type of the data."""
    y, mask = dropout(x, ratio, training=training)
    return y, mask if opset >= 10 else mask.to(x.dtype)


def dropout_1(x: Tensor, *, ratio: float = 0.5, is_test: int = 0, outputs: int = 1) -> tuple[Tensor, ...]:
    """Opsets 1 to 6: training is meant unless ``is_test``."""
    y, mask = dropout(x, ratio, 0 if is_test else 1)
    return y, mask.to(x.dtype)


OPS: dict[str, Callable[..., Any]] = {
    "BatchNormalization": batch_normalization_1, "BatchNormalization@7": batch_normalization_7,
    "BatchNormalization@9": batch_normalization_9, "BatchNormalization@14": batch_normalization,
    "InstanceNormalization": instance_normalization, "MeanVarianceNormalization": mean_variance_normalization,
    "LayerNormalization": layer_normalization, "RMSNormalization": rms_normalization,
    "GroupNormalization": group_normalization_18, "GroupNormalization@21": group_normalization,
    "LpNormalization": lp_normalization, "LRN": lrn,
    "Softmax": softmax_1, "Softmax@13": softmax, "LogSoftmax": log_softmax_1, "LogSoftmax@13": log_softmax,
    "Hardmax": hardmax_1, "Hardmax@13": hardmax,
    "Dropout": dropout_1, "Dropout@7": dropout_7, "Dropout@12": dropout,
}  # fmt: skip
