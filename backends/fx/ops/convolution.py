"""Convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from graphpress.backends.fx.operands import Ints, Tensor
from graphpress.errors import Unsupported

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def conv(
    x: Tensor, w: Tensor, b: Tensor | None = None,
    *, auto_pad: str = "NOTSET", dilations: list[int] | None = None, group: int = 1,
    kernel_shape: list[int] | None = None, pads: list[int] | None = None, strides: list[int] | None = None,
) -> Tensor:  # fmt: skip
    n = w.dim() - 2
    strides, dilations = strides or [1] * n, dilations or [1] * n
    pads = padding(x.shape[2:], w.shape[2:], auto_pad, pads, strides, dilations)
    if pads[:n] != pads[n:]:
        x, pads = F.pad(x, sided(pads)), [0] * n
    if n not in _CONV:
        raise Unsupported(f"torch has no convolution over {n} axes")
    return _CONV[n](x, w, b, strides, pads[:n], dilations, group)


def padding(
    sizes: Sequence[int], kernel: Sequence[int], auto_pad: str, pads: Sequence[int] | None,
    strides: Sequence[int], dilations: Sequence[int],
) -> list[int]:  # fmt: skip
    """Zeros before each axis, then behind each, by the rule of ``auto_pad``."""
    if auto_pad in ("NOTSET", ""):
        return list(pads or [0] * (2 * len(kernel)))
    if auto_pad == "VALID":
        return [0] * (2 * len(kernel))
    total = [
        max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    return halves(total, upper=auto_pad == "SAME_UPPER")


def halves(total: Sequence[int], *, upper: bool) -> list[int]:
    """Half before, half behind; of an odd number one more behind if ``upper``."""
    less, more = [t // 2 for t in total], [t - t // 2 for t in total]
    return [*less, *more] if upper else [*more, *less]


def sided(pads: Sequence[int]) -> list[int]:
    """ONNX's order of paddings as F.pad has it: the last axis first, before and behind together."""
    n = len(pads) // 2
    return [p for i in reversed(range(n)) for p in (pads[i], pads[i + n])]


def conv_transpose(
    x: Tensor, w: Tensor, b: Tensor | None = None,
    *, auto_pad: str = "NOTSET", dilations: list[int] | None = None, group: int = 1,
    kernel_shape: list[int] | None = None, output_padding: list[int] | None = None,
    output_shape: list[int] | None = None, pads: list[int] | None = None, strides: list[int] | None = None,
) -> Tensor:  # fmt: skip
    n = w.dim() - 2
    strides, dilations = strides or [1] * n, dilations or [1] * n
    more = output_padding or [0] * n
    if n not in _TRANSPOSED:
        raise Unsupported(f"torch has no convolution over {n} axes")
    spans = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    whole = [(size - 1) * s + span for size, s, span in zip(x.shape[2:], strides, spans, strict=True)]
    if output_shape is not None or auto_pad.startswith("SAME"):
        wanted = output_shape[-n:] if output_shape else [z * s for z, s in zip(x.shape[2:], strides, strict=True)]
        total = [a + m - o for a, m, o in zip(whole, more, wanted, strict=True)]
        pads = halves([max(t, 0) for t in total], upper=auto_pad != "SAME_LOWER")
        more = [m + max(-t, 0) for m, t in zip(more, total, strict=True)]
    pads = [0] * (2 * n) if auto_pad == "VALID" or pads is None else pads
    if pads[:n] == pads[n:] and all(m < max(s, d) for m, s, d in zip(more, strides, dilations, strict=True)):
        return _TRANSPOSED[n](x, w, b, strides, pads[:n], more, group, dilations)
    y = _TRANSPOSED[n](x, w, None, strides, 0, 0, group, dilations)
    y = F.pad(y, sided([-p for p in pads[:n]] + [m - p for m, p in zip(more, pads[n:], strict=True)]))
    return y if b is None else y + b.reshape(-1, *(1,) * n)


def causal_conv_with_state(
    x: Tensor, w: Tensor, bias: Tensor | None = None, past: Tensor | None = None, *, activation: str = "none"
) -> tuple[Tensor, Tensor]:
    """Each channel by a filter over itself and what came before: [batch, channels, length]; the state is its end."""
    keep = w.shape[-1] - 1
    x = F.pad(x, (keep, 0)) if past is None else torch.cat((past.to(x.dtype), x), -1)
    y = F.conv1d(x, w, bias, groups=w.shape[0])
    state = x[..., x.shape[-1] - keep :]
    if activation in ("silu", "swish"):
        return F.silu(y), state
    if activation != "none":
        raise Unsupported(f"CausalConvWithState has no activation {activation!r} here")
    return y, state


def col2im(
    x: Tensor, image_shape: Ints, block_shape: Ints,
    *, dilations: list[int] | None = None, pads: list[int] | None = None, strides: list[int] | None = None,
) -> Tensor:  # fmt: skip
    """Sum overlapping blocks, [batch, channels * block, positions], to a picture of any rank."""
    n = len(block_shape)
    strides, dilations, pads = strides or [1] * n, dilations or [1] * n, pads or [0] * (2 * n)
    if n == 2 and pads[:2] == pads[2:]:
        return F.fold(x, tuple(image_shape), tuple(block_shape), tuple(dilations), tuple(pads[:2]), tuple(strides))
    sizes = [s + a + b for s, a, b in zip(image_shape, pads[:n], pads[n:], strict=True)]
    index = torch.zeros([], dtype=torch.int64, device=x.device)
    for i, (size, k, s, d) in enumerate(zip(sizes, block_shape, strides, dilations, strict=True)):
        steps = (size - (k - 1) * d - 1) // s + 1
        place = torch.arange(k, device=x.device)[:, None] * d + torch.arange(steps, device=x.device) * s
        shape = [1] * (2 * n)
        shape[i], shape[n + i] = k, steps
        index = index * size + place.reshape(shape)
    values = x.reshape(x.shape[0], -1, index.numel())
    flat = values.new_zeros(x.shape[0], values.shape[1], _product(sizes))
    picture = flat.index_add(2, index.reshape(-1), values).reshape(x.shape[0], -1, *sizes)
    return F.pad(picture, sided([-p for p in pads]))


def _product(sizes: Sequence[int]) -> int:
    result = 1
    for size in sizes:
        result = result * size
    return result


def deform_conv(
    x: Tensor, w: Tensor, offset: Tensor, b: Tensor | None = None, mask: Tensor | None = None,
    *, dilations: list[int] | None = None, group: int = 1, kernel_shape: list[int] | None = None,
    offset_group: int = 1, pads: list[int] | None = None, strides: list[int] | None = None,
) -> Tensor:  # fmt: skip
    """Each tap reads beside its place, by linear interpolation (arXiv:1811.11168); two spatial axes."""
    if w.dim() != 4:
        raise Unsupported("DeformConv is computed over two axes only")
    strides, dilations, pads = strides or [1, 1], dilations or [1, 1], pads or [0, 0, 0, 0]
    batch, channels, height, width = x.shape
    (kh, kw), (oh, ow) = w.shape[2:], offset.shape[2:]
    offset = offset.reshape(batch, offset_group, kh * kw, 2, oh, ow)
    rows = _taps(kh, oh, strides[0], dilations[0], pads[0], x.device)[:, None, :, None]
    columns = _taps(kw, ow, strides[1], dilations[1], pads[1], x.device)[None, :, None, :]
    y = (rows.expand(kh, kw, oh, ow).reshape(kh * kw, oh, ow) + offset[:, :, :, 0]).flatten(2, 3)
    z = (columns.expand(kh, kw, oh, ow).reshape(kh * kw, oh, ow) + offset[:, :, :, 1]).flatten(2, 3)
    grid = torch.stack((2 * z / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1), -1).flatten(0, 1)
    groups = x.reshape(batch * offset_group, channels // offset_group, height, width)
    if min(height, width) == 1:  # a grid cannot tell places on an axis of one
        raise Unsupported("DeformConv is not computed on pictures of one row or column")
    read = F.grid_sample(groups, grid, "bilinear", "zeros", align_corners=True)
    read = read.reshape(batch, offset_group, channels // offset_group, kh * kw, oh, ow)
    if mask is not None:
        read = read * mask.reshape(batch, offset_group, 1, kh * kw, oh, ow)
    read = read.reshape(batch, group, channels // group * kh * kw, oh * ow)
    weight = w.reshape(group, w.shape[0] // group, -1)
    result = torch.einsum("gok,bgkp->bgop", weight, read).reshape(batch, w.shape[0], oh, ow)
    return result if b is None else result + b.reshape(-1, 1, 1)


def _taps(kernel: int, steps: int, stride: int, dilation: int, pad: int, device: torch.device) -> Tensor:
    """[kernel, steps]: where each tap is without its offset."""
    taps = torch.arange(kernel, device=device)[:, None] * dilation
    return taps + torch.arange(steps, device=device) * stride - pad


OPS: dict[str, Callable[..., Any]] = {
    "Conv": conv, "ConvTranspose": conv_transpose, "CausalConvWithState": causal_conv_with_state, "Col2Im": col2im,
    "DeformConv": deform_conv,
}  # fmt: skip
