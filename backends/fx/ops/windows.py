"""Where a kernel slides over the axes behind batch and channel: padding, and the windows themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from graphpress.backends.fx.operands import Tensor
from graphpress.errors import Unsupported

Sizes = Sequence[int]


def pads(
    sizes: Sizes, kernel: Sizes, strides: Sizes, dilations: Sizes, auto_pad: str, given: Sizes | None
) -> tuple[list[int], list[int]]:
    """(before, after) along each axis; ``SAME_...`` makes ``ceil(size / stride)`` windows fit.

    Raises:
        Unsupported: ``auto_pad`` is none that the standard knows.
    """
    rank = len(kernel)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        totals = [_same(*axis) for axis in zip(sizes, kernel, strides, dilations, strict=True)]
        return halves(totals, auto_pad)
    if auto_pad not in ("NOTSET", "VALID", ""):
        raise Unsupported(f"there is no auto_pad {auto_pad!r}")
    if not given or auto_pad == "VALID":
        return [0] * rank, [0] * rank
    return list(given[:rank]), list(given[rank:])


def _same(size: int, kernel: int, stride: int, dilation: int) -> int:
    """The padding that makes the output ``ceil(size / stride)`` long."""
    reach = (kernel - 1) * dilation + 1
    if stride == 1:
        return reach - 1
    count = (size + stride - 1) // stride
    return torch.sym_max((count - 1) * stride + reach - size, 0)


def halves(totals: Sizes, auto_pad: str) -> tuple[list[int], list[int]]:
    """An odd one goes behind with ``SAME_UPPER``, else in front."""
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return (small, large) if auto_pad == "SAME_UPPER" else (large, small)


def alike(before: Sizes, after: Sizes) -> bool:
    """Whether torch can pad by itself: as much on both sides, known and not negative."""
    for p in (*before, *after):  # twice as fast as all() in a function that every convolution calls
        if not isinstance(p, int) or p < 0:
            return False
    return before == after


def pad(x: Tensor, before: Sizes, after: Sizes, value: float = 0.0) -> Tensor:
    """The last axes padded with a number; less than nothing cuts off."""
    order = [p for pair in zip(reversed(before), reversed(after), strict=True) for p in pair]
    return torch.constant_pad_nd(x, order, value)


def fitted(
    sizes: Sizes, kernel: Sizes, strides: Sizes, dilations: Sizes, before: Sizes, after: Sizes
) -> tuple[list[int], list[int]]:
    """(number of windows, padding behind that they need) with ``ceil_mode``.

    A last window may reach over the padding, but has to start before it.
    """
    counts, ends = [], []
    for size, k, stride, dilation, front, back in zip(sizes, kernel, strides, dilations, before, after, strict=True):
        reach = (k - 1) * dilation + 1
        count = torch.sym_min(-((reach - size - front - back) // stride) + 1, (size + front - 1) // stride + 1)
        counts.append(count)
        ends.append((count - 1) * stride + reach - size - front)
    return counts, ends


def view(x: Tensor, kernel: Sizes, strides: Sizes, dilations: Sizes) -> Tensor:
    """(batch, channel, *windows, *kernel) without copying."""
    for axis, (k, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True), 2):
        x = x.unfold(axis, (k - 1) * dilation + 1, stride)[..., ::dilation]
    return x
