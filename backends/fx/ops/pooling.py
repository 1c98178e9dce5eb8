"""Pooling over windows and over everything, and its inverse."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

from graphpress.backends.fx.operands import Ints, Tensor
from graphpress.backends.fx.ops import windows
from graphpress.errors import Unsupported

Sizes: TypeAlias = Sequence[int]

_MAX: tuple[Callable[..., Any], ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_AVERAGE: tuple[Callable[..., Tensor], ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)

# -- the largest -------------------------------------------------------------------------------------------------------


def max_pool(
    x: Tensor,
    *, kernel_shape: Sequence[int], auto_pad: str = "NOTSET", ceil_mode: int = 0,
    dilations: Sequence[int] | None = None, pads: Sequence[int] | None = None, storage_order: int = 0,
    strides: Sequence[int] | None = None, outputs: int = 1,
) -> tuple[Tensor, ...]:  # fmt: skip
    """(largest, where it is in the whole input): the second in row-major order, or with ``storage_order`` along axes
    in reverse order, batch and channel being in front in both."""
    rank = len(kernel_shape)
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    ceil_mode = 0 if auto_pad.startswith("SAME") else ceil_mode
    if rank > len(_MAX):
        raise Unsupported(f"torch pools over one to three axes, not {rank}")
    before, after = windows.pads(x.shape[2:], kernel_shape, strides, dilations, auto_pad, pads)
    given = x if x.is_floating_point() else x.float()  # exact: integers have 8 bits here
    pool = _MAX[rank - 1]
    if windows.alike(before, after) and all(b <= k // 2 for b, k in zip(before, kernel_shape, strict=True)):
        found = pool(given, kernel_shape, strides, before, dilations, bool(ceil_mode), outputs > 1)
        moved = None  # torch's indices do not count its padding
    else:
        if ceil_mode:
            _, after = windows.fitted(x.shape[2:], kernel_shape, strides, dilations, before, after)
        given, moved = windows.pad(given, before, after, -math.inf), before
        found = pool(given, kernel_shape, strides, 0, dilations, False, outputs > 1)
    if outputs == 1:
        return (found.to(x.dtype),)
    return found[0].to(x.dtype), _places(found[1], x, given.shape[2:], moved, storage_order)


def _places(index: Tensor, x: Tensor, sizes: Sizes, before: Sizes | None, storage_order: int) -> Tensor:
    """Places in a plane of these ``sizes``, padded unless ``before`` is None, as places in all of ``x``."""
    start = torch.arange(x.shape[0] * x.shape[1], device=x.device) * math.prod(x.shape[2:])
    start = start.reshape(x.shape[0], x.shape[1], *(1,) * len(sizes))
    if before is None and not storage_order:
        return index + start
    coordinates = []
    for size, front in zip(reversed(sizes), reversed(before or [0] * len(sizes)), strict=True):
        coordinates.append(index % size - front)
        index = index // size
    order = list(zip(coordinates, reversed(x.shape[2:]), strict=True))  # the last axis first
    step = 1
    for place, size in reversed(order) if storage_order else order:
        start = start + place * step
        step = step * size
    return start


def max_unpool(
    x: Tensor, index: Tensor, output_shape: Ints | None = None,
    *, kernel_shape: Sequence[int], pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    """Values back where they were, zeros elsewhere; ``output_shape`` appends zeros or cuts off."""
    rank = len(kernel_shape)
    strides, pads = strides or [1] * rank, pads or [0] * 2 * rank
    sizes = [*x.shape[:2]]
    for axis in range(rank):
        whole = (x.shape[axis + 2] - 1) * strides[axis] + kernel_shape[axis]
        sizes.append(whole - pads[axis] - pads[axis + rank])
    y = x.new_zeros(math.prod(sizes)).scatter(0, index.reshape(-1), x.reshape(-1)).reshape(sizes)
    if output_shape is None:
        return y
    return windows.pad(y, [0] * len(sizes), [n - o for n, o in zip(output_shape, sizes, strict=True)])


# -- averages and norms ------------------------------------------------------------------------------------------------


def average_pool(
    x: Tensor,
    *, kernel_shape: Sequence[int], auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0,
    dilations: Sequence[int] | None = None, pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    """Padding is counted only with ``count_include_pad``; what ``ceil_mode`` reaches beyond it never is."""
    rank = len(kernel_shape)
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    ceil_mode = 0 if auto_pad.startswith("SAME") else ceil_mode
    before, after = windows.pads(x.shape[2:], kernel_shape, strides, dilations, auto_pad, pads)
    half = windows.alike(before, after) and all(b <= k // 2 for b, k in zip(before, kernel_shape, strict=True))
    if half and rank <= len(_AVERAGE) and all(d == 1 for d in dilations):
        wide = _wide(x) if rank == 3 else x
        average = _AVERAGE[rank - 1]
        return average(wide, kernel_shape, strides, before, bool(ceil_mode), bool(count_include_pad)).to(x.dtype)
    ends = after
    if ceil_mode:
        _, ends = windows.fitted(x.shape[2:], kernel_shape, strides, dilations, before, after)
    wide = windows.pad(_wide(x), before, ends)
    total = _averages(wide, kernel_shape, strides, dilations)
    for axis in range(rank):
        stride, front, size = strides[axis], before[axis], x.shape[axis + 2]
        starts = torch.arange(total.shape[axis + 2], device=x.device) * stride - front
        places = starts.unsqueeze(1) + torch.arange(kernel_shape[axis], device=x.device) * dilations[axis]
        low, high = (-front, size + after[axis]) if count_include_pad else (0, size)
        counted = ((places >= low) & (places < high)).sum(1).reshape(-1, *(1,) * (rank - 1 - axis))
        total = total * (kernel_shape[axis] / counted)
    return total.to(x.dtype)


def _averages(x: Tensor, kernel: Sizes, strides: Sizes, dilations: Sizes) -> Tensor:
    """The average of each window that fits."""
    if len(kernel) <= len(_AVERAGE) and all(d == 1 for d in dilations):
        return _AVERAGE[len(kernel) - 1](x, kernel, strides)
    return windows.view(x, kernel, strides, dilations).mean(tuple(range(-len(kernel), 0)))


def lp_pool(
    x: Tensor,
    *, kernel_shape: Sequence[int], auto_pad: str = "NOTSET", ceil_mode: int = 0,
    dilations: Sequence[int] | None = None, p: float = 2, pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    """The p-norm of each window."""
    rank = len(kernel_shape)
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    before, after = windows.pads(x.shape[2:], kernel_shape, strides, dilations, auto_pad, pads)
    if ceil_mode and not auto_pad.startswith("SAME"):
        _, after = windows.fitted(x.shape[2:], kernel_shape, strides, dilations, before, after)
    powers = windows.pad(_wide(x).abs().pow(p), before, after)
    averages = _averages(powers, kernel_shape, strides, dilations)
    return (averages * math.prod(kernel_shape)).pow(1 / p).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.element_size() == 2 else x


# -- over everything ---------------------------------------------------------------------------------------------------


def global_average_pool(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.dim())), keepdim=True) if x.dim() > 2 else x


def global_max_pool(x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.dim())), keepdim=True) if x.dim() > 2 else x


def global_lp_pool(x: Tensor, *, p: float = 2) -> Tensor:
    return torch.linalg.vector_norm(_wide(x), p, tuple(range(2, x.dim())), keepdim=True).to(x.dtype)


OPS: dict[str, Callable[..., Any]] = {
    "MaxPool": max_pool, "MaxUnpool": max_unpool, "AveragePool": average_pool, "LpPool": lp_pool,
    "GlobalAveragePool": global_average_pool, "GlobalMaxPool": global_max_pool, "GlobalLpPool": global_lp_pool,
}  # fmt: skip
