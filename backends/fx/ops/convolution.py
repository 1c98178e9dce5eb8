"""Convolutions over one, two or three axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from graphpress.backends.fx.operands import Ints, Tensor
from graphpress.backends.fx.ops import sampling, windows
from graphpress.errors import Unsupported

_CONVOLVE: tuple[Callable[..., Tensor], ...] = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED: tuple[Callable[..., Tensor], ...] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def _over(forms: tuple[Callable[..., Tensor], ...], rank: int) -> Callable[..., Tensor]:
    if not 1 <= rank <= len(forms):
        raise Unsupported(f"torch convolves over one to three axes, not {rank}")
    return forms[rank - 1]


def conv(
    x: Tensor, w: Tensor, b: Tensor | None = None,
    *, auto_pad: str = "NOTSET", dilations: Sequence[int] | None = None, group: int = 1,
    kernel_shape: Sequence[int] | None = None, pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    """``kernel_shape`` is that of the weight (out, in / group, *kernel)."""
    rank = x.dim() - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    convolve = _over(_CONVOLVE, rank)
    before, after = windows.pads(x.shape[2:], w.shape[2:], strides, dilations, auto_pad, pads)
    if windows.alike(before, after):
        return convolve(x, w, b, strides, before, dilations, group)
    return convolve(windows.pad(x, before, after), w, b, strides, 0, dilations, group)


def conv_transpose(
    x: Tensor, w: Tensor, b: Tensor | None = None,
    *, auto_pad: str = "NOTSET", dilations: Sequence[int] | None = None, group: int = 1,
    kernel_shape: Sequence[int] | None = None, output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None, pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    """Padding cuts off the result; where it is longer than what the kernels reach, the bias is there."""
    rank = x.dim() - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    more = output_padding or [0] * rank
    reach = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    if output_shape is None and auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        output_shape = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    if output_shape is not None:
        whole = [(n - 1) * s + r for n, s, r in zip(x.shape[2:], strides, reach, strict=True)]
        wanted = output_shape[-rank:]
        over = [torch.sym_max(n + m - o, 0) for n, m, o in zip(whole, more, wanted, strict=True)]
        before, _ = windows.halves(over, auto_pad)
        after = [n - f - o for n, f, o in zip(whole, before, wanted, strict=True)]
    else:
        before, after = windows.pads(x.shape[2:], w.shape[2:], strides, dilations, auto_pad, pads)
        after = [a - m for a, m in zip(after, more, strict=True)]
    return _cut(_over(_TRANSPOSED, rank), (x, w, b), (strides, dilations, group), before, after)


def _cut(
    convolve: Callable[..., Tensor],
    operands: tuple[Tensor, Tensor, Tensor | None],
    options: tuple[Sequence[int], Sequence[int], int],
    before: Sequence[int],
    after: Sequence[int],
) -> Tensor:
    """With ``before`` and ``after`` cut off; a negative number appends.

    torch cuts off as much on both sides and may then append less than a stride or dilation.
    """
    (x, w, b), (strides, dilations, group) = operands, options
    longer = [f - a for f, a in zip(before, after, strict=True)]
    limits = [max(s, d) for s, d in zip(strides, dilations, strict=True)]
    if all(f >= 0 and 0 <= n < most for f, n, most in zip(before, longer, limits, strict=True)):
        return convolve(x, w, b, strides, before, longer, group, dilations)
    y = windows.pad(convolve(x, w, None, strides, 0, 0, group, dilations), [-f for f in before], [-a for a in after])
    return y if b is None else y + b.reshape(-1, *(1,) * len(before))


def deform_conv(
    x: Tensor, w: Tensor, offset: Tensor, b: Tensor | None = None, mask: Tensor | None = None,
    *, dilations: Sequence[int] | None = None, group: int = 1, kernel_shape: Sequence[int] | None = None,
    offset_group: int = 1, pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    """Each place of each kernel samples ``x`` where ``offset`` moves it to (arXiv:1703.06211, 1811.11168)."""
    rank, kernel = x.dim() - 2, w.shape[2:]
    strides, dilations, pads = strides or [1] * rank, dilations or [1] * rank, pads or [0] * rank
    out, places = offset.shape[2:], math.prod(kernel)
    moved = offset.float() if offset.element_size() == 2 else offset
    moved = moved.reshape(x.shape[0] * offset_group, *kernel, rank, *out)
    axes = []
    for axis in range(rank):
        steps = torch.arange(out[axis], device=x.device) * strides[axis] - pads[axis]
        inside = torch.arange(kernel[axis], device=x.device) * dilations[axis]
        start = inside.reshape(-1, *(1,) * (2 * rank - 1 - axis)) + steps.reshape(-1, *(1,) * (rank - 1 - axis))
        axes.append((moved.select(rank + 1, axis) + start).flatten(1))
    images = x.reshape(x.shape[0] * offset_group, -1, *x.shape[2:])
    columns = sampling.linear(images, axes).reshape(x.shape[0], offset_group, -1, places, math.prod(out))
    if mask is not None:
        columns = columns * mask.reshape(x.shape[0], offset_group, 1, places, -1)
    columns = columns.reshape(x.shape[0], group, -1, math.prod(out))
    y = w.reshape(group, w.shape[0] // group, -1) @ columns.to(w.dtype)
    y = y.reshape(x.shape[0], w.shape[0], *out)
    return y if b is None else y + b.reshape(-1, *(1,) * rank)


def col2im(
    x: Tensor, image_shape: Ints, block_shape: Ints,
    *, dilations: Sequence[int] | None = None, pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    """Blocks (batch, channel * block, number) summed up where they overlap in an image."""
    rank = len(image_shape)
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    before, after = windows.pads(image_shape, block_shape, strides, dilations, "NOTSET", pads)
    if rank == 2 and x.is_floating_point() and windows.alike(before, after):
        return F.fold(x, list(image_shape), list(block_shape), dilations, before, strides)
    sizes = [n + f + a for n, f, a in zip(image_shape, before, after, strict=True)]
    index = torch.zeros((), dtype=torch.int64, device=x.device)
    for axis in range(rank):  # (*block, *number) of places in the padded image
        reach = (block_shape[axis] - 1) * dilations[axis] + 1
        starts = torch.arange((sizes[axis] - reach) // strides[axis] + 1, device=x.device) * strides[axis]
        inside = torch.arange(block_shape[axis], device=x.device) * dilations[axis]
        place = inside.reshape(-1, *(1,) * (2 * rank - 1 - axis)) + starts.reshape(-1, *(1,) * (rank - 1 - axis))
        index = index * sizes[axis] + place
    channels = x.shape[1] // math.prod(block_shape)
    blocks = x.reshape(x.shape[0] * channels, index.numel())
    image = x.new_zeros(blocks.shape[0], math.prod(sizes)).index_add(1, index.reshape(-1), blocks)
    return windows.pad(image.reshape(x.shape[0], channels, *sizes), [-f for f in before], [-a for a in after])


def causal_conv(
    x: Tensor, w: Tensor, b: Tensor | None = None, past: Tensor | None = None, *, activation: str = "none"
) -> tuple[Tensor, Tensor]:
    """Each channel (batch, channel, time) with its own kernel over what came before; the last inputs are the state."""
    if activation not in ("none", "silu", "swish"):
        raise Unsupported(f"there is no activation {activation!r}")
    states = w.shape[2] - 1
    whole = torch.constant_pad_nd(x, [states, 0]) if past is None else torch.cat((past, x), 2)
    y = F.conv1d(whole, w, b, groups=w.shape[0])
    return (y if activation == "none" else F.silu(y)), whole.narrow(2, x.shape[2], states)


OPS: dict[str, Callable[..., Any]] = {
    "Conv": conv, "ConvTranspose": conv_transpose, "DeformConv": deform_conv, "Col2Im": col2im,
    "CausalConvWithState": causal_conv,
}  # fmt: skip
