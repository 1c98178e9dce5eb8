"""Pools, and reading regions of pictures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from graphpress.backends.fx.operands import Ints, Tensor
from graphpress.backends.fx.ops.convolution import padding, sided
from graphpress.errors import Unsupported

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEAN = {2: F.avg_pool2d, 3: F.avg_pool3d}


class Geometry:
    """Windows of a pool: how many elements stand before and behind each axis, and how many windows there are."""

    def __init__(
        self, sizes: Sequence[int], kernel: Sequence[int], auto_pad: str, pads: Sequence[int] | None,
        strides: Sequence[int] | None, dilations: Sequence[int] | None, ceil_mode: int,
    ) -> None:  # fmt: skip
        n = len(kernel)
        self.kernel, self.strides = list(kernel), list(strides or [1] * n)
        self.dilations = list(dilations or [1] * n)
        self.pads = padding(sizes, kernel, auto_pad, pads, self.strides, self.dilations)
        before, behind = self.pads[:n], self.pads[n:]
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, self.dilations, strict=True)]
        self.counts, self.further = [], []  # windows, and what the last one reaches beyond the padding
        for size, span, s, a, b in zip(sizes, spans, self.strides, before, behind, strict=True):
            room = size + a + b - span
            count = (-(-room // s) if ceil_mode and auto_pad in ("NOTSET", "") else room // s) + 1
            if ceil_mode and (count - 1) * s >= size + a:
                count -= 1  # a window has to begin inside the picture or before it
            self.counts.append(count)
            self.further.append(max((count - 1) * s + span - (size + a + b), 0))

    @property
    def plain(self) -> bool:
        """Whether torch's own argument for padding says it."""
        n = len(self.kernel)
        even = self.pads[:n] == self.pads[n:]
        return even and not any(self.further) and all(2 * p <= k for p, k in zip(self.pads[:n], self.kernel, strict=True))

    @property
    def whole(self) -> list[int]:
        """Padding that also holds what the last windows reach beyond."""
        n = len(self.kernel)
        return [*self.pads[:n], *(b + f for b, f in zip(self.pads[n:], self.further, strict=True))]


def max_pool(
    x: Tensor, *, kernel_shape: list[int], auto_pad: str = "NOTSET", ceil_mode: int = 0,
    dilations: list[int] | None = None, pads: list[int] | None = None, storage_order: int = 0,
    strides: list[int] | None = None, outputs: int = 1,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The second output is where in the whole tensor each was found."""
    n = len(kernel_shape)
    if n not in _MAX:
        raise Unsupported(f"torch has no pool over {n} axes")
    g = Geometry(x.shape[2:], kernel_shape, auto_pad, pads, strides, dilations, ceil_mode)
    small = not x.is_floating_point()
    wide = x.float() if small else x  # exact for the 8 bits that the standard admits
    if g.plain:
        found = _MAX[n](wide, g.kernel, g.strides, g.pads[:n], g.dilations, False, outputs > 1)
    else:
        wide = F.pad(wide, sided(g.whole), value=-math.inf)
        found = _MAX[n](wide, g.kernel, g.strides, 0, g.dilations, False, outputs > 1)
    if outputs == 1:
        return (found.to(x.dtype) if small else found,)
    y, index = found
    places = _places(index, wide.shape[2:], [0] * n if g.plain else g.pads[:n], x.shape, storage_order)
    return (y.to(x.dtype), places)


def _places(index: Tensor, read: Sequence[int], before: Sequence[int], shape: Sequence[int], column_major: int) -> Tensor:
    """Flat indices into a tensor of ``shape`` from those into padded planes of size ``read``."""
    axes = []
    for size, pad in zip(reversed(read), reversed(before), strict=True):
        axes.insert(0, index % size - pad)
        index = index // size
    order = list(reversed(range(len(axes)))) if column_major else range(len(axes))
    place = torch.zeros_like(index)
    for i in order:
        place = place * shape[2 + i] + axes[i]
    planes = torch.arange(shape[0] * shape[1], device=index.device).reshape(shape[0], shape[1], *(1,) * len(axes))
    return place + planes * math.prod(shape[2:])


def average_pool(
    x: Tensor, *, kernel_shape: list[int], auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0,
    dilations: list[int] | None = None, pads: list[int] | None = None, strides: list[int] | None = None,
) -> Tensor:  # fmt: skip
    g = Geometry(x.shape[2:], kernel_shape, auto_pad, pads, strides, dilations, ceil_mode)
    n = len(kernel_shape)
    padded = any(g.pads) or any(g.further)
    if g.plain and set(g.dilations) == {1} and n in _MEAN and (count_include_pad or not any(g.pads)):
        return _MEAN[n](x, g.kernel, g.strides, g.pads[:n], False, True)
    total = _sums(F.pad(x, sided(g.whole)) if padded else x, g)
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    if count_include_pad:  # what the last windows reach beyond the padding does not count
        ones = F.pad(ones, sided(g.pads), value=1.0)
        ones = F.pad(ones, sided([*[0] * n, *g.further]))
    else:
        ones = F.pad(ones, sided(g.whole))
    return total / _sums(ones, g)


def _sums(x: Tensor, g: Geometry) -> Tensor:
    """Sum of each window of a padded tensor, by a convolution of each channel with ones."""
    channels, n = x.shape[1], len(g.kernel)
    kernel = torch.ones((1, 1, *g.kernel), dtype=x.dtype, device=x.device)
    flat = x.reshape(-1, 1, *x.shape[2:])
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[n]
    y = convolve(flat, kernel, None, g.strides, 0, g.dilations)
    return y.reshape(x.shape[0], channels, *y.shape[2:])


def lp_pool(
    x: Tensor, *, kernel_shape: list[int], auto_pad: str = "NOTSET", ceil_mode: int = 0,
    dilations: list[int] | None = None, p: float = 2, pads: list[int] | None = None, strides: list[int] | None = None,
) -> Tensor:  # fmt: skip
    g = Geometry(x.shape[2:], kernel_shape, auto_pad, pads, strides, dilations, ceil_mode)
    return _sums(F.pad(x.abs().pow(p), sided(g.whole)), g).pow(1.0 / p)


def global_average_pool(x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.dim())), keepdim=True)


def global_max_pool(x: Tensor) -> Tensor:
    return x.amax(list(range(2, x.dim())), keepdim=True)


def global_lp_pool(x: Tensor, *, p: float = 2) -> Tensor:
    return x.abs().pow(p).sum(list(range(2, x.dim())), keepdim=True).pow(1.0 / p)


def max_unpool(
    x: Tensor, index: Tensor, output_shape: Ints | None = None,
    *, kernel_shape: list[int], pads: list[int] | None = None, strides: list[int] | None = None,
) -> Tensor:  # fmt: skip
    """Back to where MaxPool found them; the indices count in the tensor that the pads and strides give."""
    n = len(kernel_shape)
    strides, pads = strides or [1] * n, pads or [0] * (2 * n)
    sizes = [
        (size - 1) * s - a - b + k
        for size, s, a, b, k in zip(x.shape[2:], strides, pads[:n], pads[n:], kernel_shape, strict=True)
    ]
    shape = [*x.shape[:2], *sizes]
    y = x.new_zeros(math.prod(shape)).scatter(0, index.reshape(-1), x.reshape(-1)).reshape(shape)
    if output_shape is None:
        return y
    return F.pad(y, sided([0] * n + [w - s for w, s in zip(output_shape[2:], sizes, strict=True)]))


# -- regions of interest --------------------------------------------------------------------------------------------------


def max_roi_pool(x: Tensor, rois: Tensor, *, pooled_shape: list[int], spatial_scale: float = 1.0) -> Tensor:
    """The largest of each bin of each region (Fast R-CNN): regions are rows (batch, x1, y1, x2, y2)."""
    box = torch.round(rois[:, 1:] * spatial_scale)
    inside = []
    for axis, (size, count) in enumerate(zip((x.shape[3], x.shape[2]), reversed(pooled_shape), strict=True)):
        start = box[:, axis, None]
        length = (box[:, axis + 2, None] - start + 1).clamp_min(1)
        bins = torch.arange(count, device=x.device, dtype=x.dtype)
        low = (torch.floor(bins * length / count) + start).clamp(0, size)[..., None]
        high = (torch.ceil((bins + 1) * length / count) + start).clamp(0, size)[..., None]
        places = torch.arange(size, device=x.device)
        inside.append((places >= low) & (places < high))  # [regions, bins, places]
    columns, rows = inside
    found = x[rois[:, 0].long()]  # [regions, channels, height, width]
    wide = torch.where(columns[:, None, None], found.unsqueeze(3), -math.inf).amax(-1)
    tall = torch.where(rows[:, None, :, :, None], wide.unsqueeze(2), -math.inf).amax(3)
    return torch.where(torch.isinf(tall), 0.0, tall)


def roi_align(
    x: Tensor, rois: Tensor, batch_indices: Tensor, *, coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg", output_height: int = 1, output_width: int = 1, sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:  # fmt: skip
    """Mean or largest of points read by linear interpolation (Mask R-CNN). Rows of ``rois`` are (x1, y1, x2, y2)."""
    half = coordinate_transformation_mode == "half_pixel"
    box = rois * spatial_scale - (0.5 if half else 0.0)
    results = []
    for i in range(rois.shape[0]):
        x1, y1, x2, y2 = box[i].unbind()
        width, height = (x2 - x1, y2 - y1) if half else ((x2 - x1).clamp_min(1.0), (y2 - y1).clamp_min(1.0))
        rows = _points(y1, height, output_height, sampling_ratio)
        columns = _points(x1, width, output_width, sampling_ratio)
        results.append(_bins(x[batch_indices[i]], rows, columns, mode))
    return torch.stack(results) if results else x.new_zeros(0, x.shape[1], output_height, output_width)


def roi_align_10(
    x: Tensor, rois: Tensor, batch_indices: Tensor, *, mode: str = "avg", output_height: int = 1,
    output_width: int = 1, sampling_ratio: int = 0, spatial_scale: float = 1.0,
) -> Tensor:  # fmt: skip
    """Opset 10 does not shift by half a pixel."""
    return roi_align(
        x, rois, batch_indices, coordinate_transformation_mode="output_half_pixel", mode=mode,
        output_height=output_height, output_width=output_width, sampling_ratio=sampling_ratio,
        spatial_scale=spatial_scale,
    )  # fmt: skip


def _points(start: Tensor, length: Tensor, bins: int, ratio: int) -> Tensor:
    """[bins, points]: where a region is read along one axis."""
    count = ratio if ratio > 0 else max(math.ceil(float(length) / bins), 1)
    size = length / bins
    steps = (torch.arange(count, device=start.device, dtype=start.dtype) + 0.5) * size / count
    return start + torch.arange(bins, device=start.device, dtype=start.dtype)[:, None] * size + steps


def _bins(picture: Tensor, rows: Tensor, columns: Tensor, mode: str) -> Tensor:
    """[channels, bins, bins] of a picture [channels, height, width]."""
    sides = [_interpolated(p, s) for p, s in ((rows, picture.shape[1]), (columns, picture.shape[2]))]
    values = []
    for (i, a), (j, b) in itertools.product(*sides):
        weight = a.reshape(*a.shape, 1, 1) * b
        values.append(picture[:, i.reshape(*i.shape, 1, 1), j] * weight)
    if mode == "avg":
        return torch.stack(values).sum(0).mean((2, 4))
    return torch.stack(values).amax(0).amax((2, 4))


def _interpolated(points: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """(index, weight) of both neighbours of each point; points beyond the picture count nothing."""
    inside = (points >= -1.0) & (points <= size)
    points = points.clamp(0, size - 1)
    low = points.floor().clamp(max=size - 1)
    high = (low + 1).clamp(max=size - 1)
    share = points - low
    return [(low.long(), (1 - share) * inside), (high.long(), share * inside)]


OPS: dict[str, Callable[..., Any]] = {
    "MaxPool": max_pool, "AveragePool": average_pool, "LpPool": lp_pool, "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool, "GlobalLpPool": global_lp_pool, "MaxUnpool": max_unpool,
    "MaxRoiPool": max_roi_pool, "RoiAlign": roi_align_10, "RoiAlign@16": roi_align,
}  # fmt: skip
