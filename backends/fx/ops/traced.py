"""Nodes that were one operator of torch, as the graph notes (``keys.ATEN``): the same operator again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from graphpress.backends.fx.operands import Floats, Index, Int, Ints, Tensor
from graphpress.backends.fx.ops import indexing, resize

_SPLIT = 2.0**29 + 1  # splits a double at the 24 bits of a float32
_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


def embedding(x: Tensor, index: Index, *, axis: int = 0) -> Tensor:
    """Its indices are never negative."""
    if isinstance(index, torch.Tensor) and axis == 0 and x.dim() == 2:
        return F.embedding(index, x)
    return indexing.gather(x, index, axis=axis)


def topk(x: Tensor, k: Int, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    """Which of equal values count is torch's choice."""
    values, index = torch.topk(x, k, axis, bool(largest), bool(sorted))
    return values, index


def interpolate(
    x: Tensor, roi: Floats | None = None, scales: Floats | None = None, sizes: Ints | None = None,
    *, antialias: int = 0, coordinate_transformation_mode: str = "half_pixel", cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0, extrapolation_value: float = 0.0, keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest", nearest_mode: str = "round_prefer_floor", in_types: tuple[str | None, ...] = (None,),
) -> Tensor:  # fmt: skip
    """Of everything behind the channels; how it gets from sizes to coordinates is torch's own way."""
    kind = {"linear": _LINEAR[x.dim()], "cubic": "bicubic"}.get(mode, mode)
    corners = {} if kind == "nearest" else {"align_corners": coordinate_transformation_mode == "align_corners"}
    if sizes:
        return F.interpolate(x, size=list(sizes[2:]), mode=kind, **corners)
    given = list(scales or ())[2:]
    factors = [_decimal(s) for s in given]
    if all(_reaches(n, f, s) for n, f, s in zip(x.shape[2:], factors, given, strict=True)):
        return F.interpolate(x, scale_factor=factors, mode=kind, **corners)
    return resize.resize(
        x, roi, scales, sizes, antialias=antialias, cubic_coeff_a=cubic_coeff_a, exclude_outside=exclude_outside,
        coordinate_transformation_mode=coordinate_transformation_mode, extrapolation_value=extrapolation_value,
        keep_aspect_ratio_policy=keep_aspect_ratio_policy, mode=mode, nearest_mode=nearest_mode, in_types=in_types,
    )  # fmt: skip


def _decimal(scale: float) -> float:
    """The shortest number that is this one in float32: what was written where the graph has 0.6000000238418579."""
    for digits in range(1, 9):
        short = float(f"{scale:.{digits}g}")
        high = short * _SPLIT
        if high - (high - short) == scale:
            return short
    return scale


def _reaches(size: int, factor: float, scale: float) -> bool:
    """Whether a factor gives the size that the graph's scale gives."""
    return factor == scale or (isinstance(size, int) and int(size * factor) == resize.scaled(size, scale))


OPS: dict[str, Callable[..., Any]] = {"Gather:embedding": embedding, "TopK:topk": topk, "Resize:upsample": interpolate}
