"""Pictures: sampling on a grid, crops, blocks of places as channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from graphpress.backends.fx.operands import Ints, Tensor
from graphpress.backends.fx.ops import sampling, windows
from graphpress.errors import Unsupported

_SAMPLED = {
    "linear": "bilinear", "bilinear": "bilinear", "nearest": "nearest", "cubic": "bicubic", "bicubic": "bicubic",
}  # fmt: skip

# -- sampling ---------------------------------------------------------------------------------------------------------


def grid_sample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Tensor:
    """Values of ``x`` (batch, channel, *sizes) at ``grid`` (batch, *out, rank), whose coordinates go from -1 to 1."""
    if mode not in _SAMPLED or padding_mode not in ("zeros", "border", "reflection"):
        raise Unsupported(f"there is no mode {mode!r} with padding_mode {padding_mode!r}")
    given = x if x.is_floating_point() and x.element_size() > 2 else x.float()
    grid, rank = grid.to(given.dtype), x.dim() - 2
    options = (_SAMPLED[mode], padding_mode, bool(align_corners))
    if rank == 1:  # a picture of one row, in the middle of which all points are
        points = torch.stack((grid[..., 0], torch.zeros_like(grid[..., 0])), -1).unsqueeze(1)
        y = F.grid_sample(given.unsqueeze(2), points, *options).squeeze(2)
    elif rank == 2 or (rank == 3 and options[0] != "bicubic"):
        y = F.grid_sample(given, grid, *options)
    else:
        y = _sampled(given, grid, *options)
    return y.to(x.dtype)


def _sampled(x: Tensor, grid: Tensor, mode: str, padding: str, align: bool) -> Tensor:
    """Any number of axes, in the steps of F.grid_sample."""
    axes: list[list[sampling.Tap]] = []
    for axis, size in enumerate(x.shape[2:]):
        share = grid.select(-1, x.dim() - 3 - axis).flatten(1)
        where = (share + 1) / 2 * (size - 1) if align else ((share + 1) * size - 1) / 2
        where = where if mode == "bicubic" else _padded(where, size, padding, align)
        axes.append([_tap(place, w, size, padding, align) for place, w in _weights(where, mode)])
    return sampling.taps(x, axes).reshape(*x.shape[:2], *grid.shape[1:-1])


def _weights(where: Tensor, mode: str) -> list[sampling.Tap]:
    """(place, weight) around each coordinate."""
    if mode == "nearest":
        return [(where.round(), torch.ones_like(where))]
    low = where.floor()
    if mode == "bilinear":
        return [(low, low + 1 - where), (low + 1, where - low)]
    return [(low + i, sampling.cubic((low + i - where).abs(), -0.75)) for i in range(-1, 3)]


def _padded(where: Tensor, size: int, padding: str, align: bool) -> Tensor:
    """Coordinates moved into the picture, but for zeros, which are outside."""
    if padding == "zeros":
        return where
    if padding == "reflection":
        low, length = (0.0, size - 1) if align else (-0.5, size)
        turn = (where - low).abs() % (2 * length) if length else torch.zeros_like(where)
        where = torch.minimum(turn, 2 * length - turn) + low
    return where.clamp(0, size - 1)


def _tap(place: Tensor, weight: Tensor, size: int, padding: str, align: bool) -> sampling.Tap:
    return sampling.inside(_padded(place, size, padding, align), weight, size)


def affine_grid(theta: Tensor, size: Ints, *, align_corners: int = 0) -> Tensor:
    """Coordinates (batch, *out, rank) for ``grid_sample``; ``size`` is that of its result."""
    return F.affine_grid(theta, list(size), bool(align_corners))


# -- movement ---------------------------------------------------------------------------------------------------------


def center_crop_pad(x: Tensor, shape: Ints, *, axes: Sequence[int] | None = None) -> Tensor:
    """The middle of it, or zeros around it; an odd number leaves one more behind."""
    before, after = [0] * x.dim(), [0] * x.dim()
    for axis, wanted in zip(range(x.dim()) if axes is None else axes, shape, strict=True):
        more = wanted - x.shape[axis]
        before[axis] = torch.sym_max(more, 0) // 2 - torch.sym_max(-more, 0) // 2
        after[axis] = more - before[axis]
    return windows.pad(x, before, after)


def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Channels as blocks of places; ``DCR``: the places are the slower index of the channels, ``CRD``: the faster."""
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    _only(mode)
    n, c, h, w = x.shape
    blocks = x.reshape(n, blocksize, blocksize, c // blocksize**2, h, w)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, c // blocksize**2, h * blocksize, w * blocksize)


def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """The inverse."""
    if mode == "CRD":
        return F.pixel_unshuffle(x, blocksize)
    _only(mode)
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // blocksize, blocksize, w // blocksize, blocksize)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, c * blocksize**2, h // blocksize, w // blocksize)


def _only(mode: str) -> None:
    if mode != "DCR":
        raise Unsupported(f"there is no mode {mode!r}")


OPS: dict[str, Callable[..., Any]] = {
    "GridSample": grid_sample, "AffineGrid": affine_grid, "CenterCropPad": center_crop_pad,
    "DepthToSpace": depth_to_space, "SpaceToDepth": space_to_depth,
}  # fmt: skip
