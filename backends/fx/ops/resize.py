"""Resize and Upsample: one axis after another, or all at once where a kernel of torch means exactly the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F

from graphpress.backends.fx import dtypes
from graphpress.backends.fx.operands import Floats, Ints, Tensor
from graphpress.backends.fx.ops import sampling
from graphpress.errors import Unsupported

Taps: TypeAlias = tuple[Tensor, Tensor]  # (output, tap): places in the input, weights

_aten = torch.ops.aten
_NEAREST = (_aten.upsample_nearest1d.default, _aten.upsample_nearest2d.default, _aten.upsample_nearest3d.default)
_LINEAR = (_aten.upsample_linear1d.default, _aten.upsample_bilinear2d.default, _aten.upsample_trilinear3d.default)
_CUBIC = (None, _aten.upsample_bicubic2d.default, None)
_FEW = 32  # more taps than this are a product with a matrix, over which an infinity spreads
_SPLIT = 2.0**29 + 1  # splits a double at the 24 bits of a float32


class Axis(NamedTuple):
    """One axis that changes.

    Attributes:
        axis: Which, from the front.
        size: In the input.
        out: In the output.
        scale: Output by input, which ``out`` is cut from.
        length: The output before it was cut to an integer.
        start: Of the region to take, as a share of the axis; it ends at ``end``.
    """

    axis: int
    size: int
    out: int
    scale: float
    length: float
    start: float = 0.0
    end: float = 1.0


class How(NamedTuple):
    """The attributes that say how to interpolate."""

    mode: str
    coordinates: str = "half_pixel"
    nearest: str = "round_prefer_floor"
    a: float = -0.75
    exclude_outside: bool = False
    extrapolation: float = 0.0
    antialias: bool = False
    type: str | None = None


# -- operators --------------------------------------------------------------------------------------------------------


def resize(
    x: Tensor, roi: Floats | None = None, scales: Floats | None = None, sizes: Ints | None = None,
    *, antialias: int = 0, axes: Sequence[int] | None = None, coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75, exclude_outside: int = 0, extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch", mode: str = "nearest", nearest_mode: str = "round_prefer_floor",
    in_types: tuple[str | None, ...] = (None,),
) -> Tensor:  # fmt: skip
    """By ``scales``, or to ``sizes``; ``roi`` counts for ``tf_crop_and_resize`` only."""
    how = How(
        mode, coordinate_transformation_mode, nearest_mode, cubic_coeff_a, bool(exclude_outside), extrapolation_value,
        bool(antialias), in_types[0],
    )  # fmt: skip
    which = list(range(x.dim())) if axes is None else [a % x.dim() for a in axes]
    given = [x.shape[a] for a in which]
    if scales:
        changes = _by_scales(which, given, scales)
    else:
        changes = _by_sizes(which, given, sizes or given, keep_aspect_ratio_policy)
    if coordinate_transformation_mode == "tf_crop_and_resize":
        assert roi is not None
        changes = [
            c._replace(start=s, end=e) for c, s, e in zip(changes, roi[: len(which)], roi[len(which) :], strict=True)
        ]
    return _resized(x, [c for c in changes if _changes(c)], how)


def resize_10(
    x: Tensor, scales: Floats, *, mode: str = "nearest", in_types: tuple[str | None, ...] = (None,)
) -> Tensor:
    """The nearest place is the next where an axis shrinks, the one before where it grows: opset 10's test cases."""
    return _asymmetric(x, scales, mode, "ahead_if_smaller", in_types)


def upsample(x: Tensor, scales: Floats, *, mode: str = "nearest", in_types: tuple[str | None, ...] = (None,)) -> Tensor:
    """Coordinates are divided by the scale and cut to integers."""
    return _asymmetric(x, scales, mode, "floor", in_types)


def upsample_1(
    x: Tensor, *, height_scale: float, width_scale: float, mode: str = "nearest",
    in_types: tuple[str | None, ...] = (None,),
) -> Tensor:  # fmt: skip
    scales = [1.0, 1.0, height_scale, width_scale]
    return upsample(x, scales, mode="linear" if mode == "bilinear" else mode, in_types=in_types)


def _asymmetric(x: Tensor, scales: Floats, mode: str, nearest: str, in_types: tuple[str | None, ...]) -> Tensor:
    changes = _by_scales(range(x.dim()), x.shape, scales)
    return _resized(x, [c for c in changes if _changes(c)], How(mode, "asymmetric", nearest, type=in_types[0]))


# -- sizes ------------------------------------------------------------------------------------------------------------


def _by_scales(axes: Sequence[int], sizes: Sequence[int], scales: Floats) -> list[Axis]:
    triples = zip(axes, sizes, scales, strict=True)
    return [Axis(a, n, scaled(n, s), s, n * int(s) if s == int(s) else n * s) for a, n, s in triples]


def scaled(size: int, scale: float) -> int:
    """The whole part of their product in float32, as the standard's shape inference has it."""
    if scale == int(scale):
        return size * int(scale)
    if 1 / scale == int(1 / scale):
        return size // int(1 / scale)
    product = size * scale
    high = product * _SPLIT
    return math.floor(high - (high - product))


def _by_sizes(axes: Sequence[int], sizes: Sequence[int], wanted: Sequence[int], policy: str) -> list[Axis]:
    if policy == "stretch":
        return [Axis(a, n, w, w / n, w) for a, n, w in zip(axes, sizes, wanted, strict=True)]
    if policy not in ("not_larger", "not_smaller"):
        raise Unsupported(f"there is no keep_aspect_ratio_policy {policy!r}")
    extreme = min if policy == "not_larger" else max
    scale = extreme(w / n for n, w in zip(sizes, wanted, strict=True))
    return [Axis(a, n, math.floor(scale * n + 0.5), scale, scale * n) for a, n in zip(axes, sizes, strict=True)]


def _changes(change: Axis) -> bool:
    """A symbolic scale may be anything."""
    return not (_known(change.scale) and change.scale == 1 and change.start == 0 and change.end == 1)


def _known(scale: float) -> bool:
    return isinstance(scale, int | float)


def _is_whole(scale: float) -> bool:
    return _known(scale) and scale == int(scale)


# -- all axes at once -------------------------------------------------------------------------------------------------


def _resized(x: Tensor, changes: Sequence[Axis], how: How) -> Tensor:
    if how.mode not in ("nearest", "linear", "cubic"):
        raise Unsupported(f"there is no mode {how.mode!r}")
    if how.mode == "nearest" and how.antialias:
        raise Unsupported("there is no antialiasing of the nearest place")
    if not changes:
        return x
    kernel = _kernel(x, changes, how)
    if kernel is not None:
        return _at_once(kernel, x, changes, how)
    if how.coordinates == "asymmetric" and how.mode != "nearest" and all(_is_whole(c.scale) for c in changes):
        longer = [c._replace(size=c.size + 1, out=c.out + 1, length=c.out + 1) for c in changes]
        cornered = how._replace(coordinates="align_corners")
        kernel = _kernel(x, longer, cornered)
        if kernel is not None:
            return _by_one_more(kernel, x, longer, cornered)
    return _one_by_one(x, changes, how)


def _at_once(kernel: Callable[..., Any], x: Tensor, changes: Sequence[Axis], how: How) -> Tensor:
    by_axis = {c.axis: c for c in changes}
    found = [by_axis.get(axis) for axis in range(2, x.dim())]
    out = [c.out if c else n for c, n in zip(found, x.shape[2:], strict=True)]
    scales = [c.scale if c else 1.0 for c in found]
    options = () if how.mode == "nearest" else (how.coordinates == "align_corners",)
    result: Tensor = kernel(x, out, *options, *scales)
    return result


def _by_one_more(kernel: Callable[..., Any], x: Tensor, longer: Sequence[Axis], how: How) -> Tensor:
    """Whole steps go from the first corner to the one behind the last, where the last place is again."""
    axes = [c.axis for c in longer]
    more = [n for axis in reversed(range(2, x.dim())) for n in (0, int(axis in axes))]
    y = _at_once(kernel, F.pad(x, more, mode="replicate"), longer, how)
    for change in longer:
        y = y.narrow(change.axis, 0, change.out - 1)
    return y


def _one_by_one(x: Tensor, changes: Sequence[Axis], how: How) -> Tensor:
    if how.mode == "nearest":
        for change in changes:
            x = _nearest(x, change, how)
        return x
    if x.dtype == torch.bool or how.type == "UINT64":
        raise Unsupported(f"torch cannot interpolate {how.type or x.dtype}")
    if x.dtype in (torch.int32, torch.int64):
        y = x.double()
    else:
        y = x.float() if not (x.is_floating_point() or x.is_complex()) or x.element_size() == 2 else x
    for change in changes:
        y = _interpolated(y, change, how)
    return y.to(x.dtype) if x.is_floating_point() or x.is_complex() else _whole(y, x.dtype, how.type)


def _whole(y: Tensor, dtype: torch.dtype, name: str | None) -> Tensor:
    low, high = dtypes.integer_range(name or str(dtype).removeprefix("torch.").upper())
    return y.round().clamp(low, high).to(dtype)


def _kernel(x: Tensor, changes: Sequence[Axis], how: How) -> Callable[..., Any] | None:
    """torch's own, if there is one for these axes and with this meaning."""
    fits = 3 <= x.dim() <= 5 and all(c.axis > 1 and c.out != 0 for c in changes)
    fits = fits and x.is_floating_point() and not how.antialias
    if not fits:
        return None
    rank = x.dim() - 3
    if how.mode == "nearest":
        return _NEAREST[rank] if _repeats(changes, how) else None
    whole = how.coordinates == "align_corners" and all(c.length == c.out for c in changes)
    if how.coordinates == "pytorch_half_pixel":
        whole = all(c.out > 1 for c in changes)
    if not (whole or how.coordinates == "half_pixel"):
        return None
    if how.mode == "cubic":
        return _CUBIC[rank] if how.a == -0.75 and not how.exclude_outside else None
    return _LINEAR[rank]


def _repeats(changes: Sequence[Axis], how: How) -> bool:
    """Whether each place becomes a power of two of places, with which float32 does not err."""
    if how.coordinates == "asymmetric":
        fits = how.nearest in ("floor", "ahead_if_smaller")
    else:
        fits = how.coordinates in ("half_pixel", "pytorch_half_pixel") and how.nearest.startswith("round")
    return fits and all(_known(c.scale) and c.scale >= 1 and math.frexp(c.scale)[0] == 0.5 for c in changes)


# -- one axis ---------------------------------------------------------------------------------------------------------


def _coordinates(change: Axis, how: How, device: torch.device) -> Tensor:
    """Where each output place lies in the input, counted from the centre of its first place.

    What is rounded to the nearest place is computed as runtimes do, in float32: scales are float32, and with their
    exact value a scale of 0.6 would never meet a place.
    """
    crops = how.coordinates == "tf_crop_and_resize"
    dtype = torch.float32 if how.mode == "nearest" and not crops else torch.float64
    place = torch.arange(change.out, dtype=dtype, device=device)
    if crops:
        return _cropped(place, change)
    if how.coordinates == "align_corners":
        return place * (change.size - 1) / (change.length - 1) if change.length != 1 else place * 0
    if how.coordinates == "pytorch_half_pixel" and change.out == 1:
        return place
    scale = torch.full((), change.scale, dtype=dtype, device=device)  # a number would become its reciprocal on CUDA
    if how.coordinates == "asymmetric":
        return place / scale
    if how.coordinates in ("half_pixel", "pytorch_half_pixel"):
        return (place + 0.5) / scale - 0.5
    if how.coordinates == "half_pixel_symmetric":
        return change.size / 2 * (1 - change.out / change.length) + (place + 0.5) / scale - 0.5
    raise Unsupported(f"there is no coordinate_transformation_mode {how.coordinates!r}")


def _cropped(place: Tensor, change: Axis) -> Tensor:
    share = place / (change.length - 1) if change.length != 1 else place * 0 + 0.5
    return (change.start + share * (change.end - change.start)) * (change.size - 1)


def _nearest(x: Tensor, change: Axis, how: How) -> Tensor:
    where = _coordinates(change, how, x.device)
    if how.nearest == "round_prefer_floor":
        place = torch.ceil(where - 0.5)
    elif how.nearest == "round_prefer_ceil":
        place = torch.floor(where + 0.5)
    elif how.nearest in ("floor", "ceil", "ahead_if_smaller"):
        ahead = how.nearest == "ceil" or (how.nearest == "ahead_if_smaller" and change.scale < 1)
        place = torch.ceil(where) if ahead else torch.floor(where)
    else:
        raise Unsupported(f"there is no nearest_mode {how.nearest!r}")
    y = _taken(x, change.axis, place.clamp(0, change.size - 1).long())
    return _extrapolated(y, where, change, how)


def _taken(x: Tensor, axis: int, place: Tensor) -> Tensor:
    """Places along one axis; along the last one gather is several times as fast on a CPU."""
    if axis == x.dim() - 1:
        return x.gather(axis, place.expand(*x.shape[:-1], -1))
    return x.index_select(axis, place)


def _interpolated(x: Tensor, change: Axis, how: How) -> Tensor:
    where = _coordinates(change, how, x.device)
    place, weight = _taps(where, change, how)
    if how.exclude_outside:
        weight = torch.where((place >= 0) & (place < change.size), weight, 0)
        weight = weight / weight.sum(1, keepdim=True)
    place, weight = place.clamp(0, change.size - 1), weight.to(x.dtype)
    if place.shape[1] > _FEW:
        matrix = weight.new_zeros(change.size, change.out).scatter_add(0, place.t(), weight.t())
        y = (x.movedim(change.axis, -1) @ matrix).movedim(-1, change.axis)
    else:
        weights = weight.t().reshape(*place.t().shape, *(1,) * (x.dim() - change.axis - 1)).unbind(0)
        first, *others = [_taken(x, change.axis, p) for p in place.unbind(1)]
        y = first * weights[0]
        for term, factor in zip(others, weights[1:], strict=True):
            y = torch.addcmul(y, term, factor)
    return _extrapolated(y, where, change, how)


def _taps(where: Tensor, change: Axis, how: How) -> Taps:
    """The places around each coordinate; antialiasing reaches as far as one output place does in the input."""
    reach = 1 if how.mode == "linear" else 2
    shrink = min(change.scale, 1.0) if how.antialias else 1.0
    first = math.floor(-reach / shrink) + 1
    low = where.floor()
    place = low.unsqueeze(1) + torch.arange(first, 2 - first, device=where.device)
    distance = ((place - where.unsqueeze(1)) * shrink).abs()
    weight = (1 - distance).clamp(min=0) if how.mode == "linear" else sampling.cubic(distance, how.a)
    if how.antialias:
        weight = weight / weight.sum(1, keepdim=True)
    return place.long(), weight


def _extrapolated(y: Tensor, where: Tensor, change: Axis, how: How) -> Tensor:
    if how.coordinates != "tf_crop_and_resize":
        return y
    outside = ((where < 0) | (where > change.size - 1)).reshape(-1, *(1,) * (y.dim() - change.axis - 1))
    return torch.where(outside, torch.full((), how.extrapolation, dtype=y.dtype, device=y.device), y)


OPS: dict[str, Callable[..., Any]] = {
    "Resize": resize_10, "Resize@11": resize, "Upsample": upsample_1, "Upsample@7": upsample,
}  # fmt: skip
