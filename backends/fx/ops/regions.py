"""Regions of pictures: pooling over them, and which of them to keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from graphpress.backends.fx.operands import Float, Int, Tensor
from graphpress.errors import Unsupported

# -- pooling -----------------------------------------------------------------------------------------------------------


def max_roi_pool(x: Tensor, rois: Tensor, *, pooled_shape: Sequence[int], spatial_scale: float = 1.0) -> Tensor:
    """The largest of each cell of a region [batch, x1, y1, x2, y2], whose corners are rounded (arXiv:1504.08083)."""
    y = x.index_select(0, rois[:, 0].long())
    corners = rois[:, 1:].float() * spatial_scale
    corners = (corners + 0.5 * corners.sign()).trunc()  # halves away from zero
    for axis, (low, high) in ((3, (0, 2)), (2, (1, 3))):
        start, count = corners[:, low], pooled_shape[axis - 2]
        cell = (corners[:, high] - start + 1).clamp(min=1) / count
        place = torch.arange(x.shape[axis], device=x.device)
        parts = []
        for i in range(count):
            first, last = (cell * i).floor() + start, (cell * (i + 1)).ceil() + start
            inside = (place >= first.unsqueeze(1)) & (place < last.unsqueeze(1))
            inside = inside.unsqueeze(1).unsqueeze(2 if axis == 3 else 3)
            parts.append(y.masked_fill(~inside, -torch.inf).amax(axis))
        y = torch.stack(parts, axis)
    return y.masked_fill(y == -torch.inf, 0)  # of cells without a place


def roi_align(
    x: Tensor, rois: Tensor, batch_indices: Tensor,
    *, coordinate_transformation_mode: str = "half_pixel", mode: str = "avg", output_height: int = 1,
    output_width: int = 1, sampling_ratio: int = 0, spatial_scale: float = 1.0,
) -> Tensor:  # fmt: skip
    """Each cell of a region [x1, y1, x2, y2] by samples on a regular grid in it (arXiv:1703.06870).

    ``sampling_ratio`` samples along each axis; 0: one for each place of ``x`` that a cell covers.
    """
    if mode not in ("avg", "max") or coordinate_transformation_mode not in ("half_pixel", "output_half_pixel"):
        raise Unsupported(f"there is no mode {mode!r} of {coordinate_transformation_mode!r}")
    shifted = coordinate_transformation_mode == "half_pixel"
    corners = (rois.float() if rois.element_size() == 2 else rois) * spatial_scale - (0.5 if shifted else 0.0)
    extent = corners[:, 2:] - corners[:, :2]
    extent = extent if shifted else extent.clamp(min=1)
    cells = torch.stack((extent[:, 0] / output_width, extent[:, 1] / output_height), 1)
    grid = cells.ceil().clamp(min=0) if sampling_ratio <= 0 else torch.full_like(cells, sampling_ratio)
    most = [sampling_ratio] * 2 if sampling_ratio > 0 else _largest(grid)
    rows = x.movedim(1, -1).reshape(-1, x.shape[1])
    nothing = 0.0 if mode == "avg" else -torch.inf
    wide = torch.float32 if x.element_size() == 2 else x.dtype
    y = rows.new_full((rois.shape[0], output_height, output_width, x.shape[1]), nothing, dtype=wide)
    first = batch_indices.long() * (x.shape[2] * x.shape[3])
    for i in range(most[1]):
        down = _samples(corners[:, 1], cells[:, 1], grid[:, 1], output_height, i, x.shape[2])
        for j in range(most[0]):
            along = _samples(corners[:, 0], cells[:, 0], grid[:, 0], output_width, j, x.shape[3])
            missing = ((grid[:, 1] <= i) | (grid[:, 0] <= j)).reshape(-1, 1, 1, 1)
            sample = _bilinear(rows, first, down, along, x.shape[3], mode).masked_fill(missing, nothing)
            y = y + sample if mode == "avg" else torch.maximum(y, sample)
    y = y.masked_fill(y == -torch.inf, 0) if mode == "max" else y / grid.prod(1).clamp(min=1).reshape(-1, 1, 1, 1)
    return y.movedim(-1, 1).to(x.dtype)


def _largest(grid: Tensor) -> list[int]:
    """The number of samples along each axis that the largest region needs."""
    return [int(n) for n in grid.amax(0).tolist()] if grid.shape[0] else [0, 0]


def roi_align_10(
    x: Tensor, rois: Tensor, batch_indices: Tensor,
    *, mode: str = "avg", output_height: int = 1, output_width: int = 1, sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:  # fmt: skip
    """Opsets 10 to 15: coordinates count from the corner of the first place."""
    return roi_align(
        x, rois, batch_indices, coordinate_transformation_mode="output_half_pixel", mode=mode,
        output_height=output_height, output_width=output_width, sampling_ratio=sampling_ratio,
        spatial_scale=spatial_scale,
    )  # fmt: skip


Samples: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]  # (region, cell) each


def _samples(start: Tensor, cell: Tensor, grid: Tensor, count: int, i: int, size: int) -> Samples:
    """Of the i-th sample of each cell along one axis: the two places around it (region, cell), and their weights."""
    step = torch.arange(count, device=start.device) + ((i + 0.5) / grid.clamp(min=1)).unsqueeze(1)
    where = start.unsqueeze(1) + step * cell.unsqueeze(1)
    there = (where >= -1) & (where <= size)
    where = where.clamp(0, size - 1)
    low = where.floor()
    part = where - low
    high = (low + 1).clamp(max=size - 1)
    return low.long(), high.long(), torch.where(there, 1 - part, 0), torch.where(there, part, 0)


def _bilinear(rows: Tensor, first: Tensor, down: Samples, along: Samples, width: int, mode: str) -> Tensor:
    """(region, row, column, channel). The standard takes the largest of the four weighted corners for ``max``."""
    combine, total = torch.add if mode == "avg" else torch.maximum, None
    for vertical in range(2):
        for horizontal in range(2):
            place = down[vertical].unsqueeze(2) * width + along[horizontal].unsqueeze(1) + first.reshape(-1, 1, 1)
            weight = (down[2 + vertical].unsqueeze(2) * along[2 + horizontal].unsqueeze(1)).unsqueeze(3)
            corner = rows.index_select(0, place.reshape(-1)).reshape(*place.shape, -1) * weight
            total = corner if total is None else combine(total, corner)
    assert total is not None
    return total


# -- choice ------------------------------------------------------------------------------------------------------------


def non_max_suppression(
    boxes: Tensor, scores: Tensor, max_output_boxes_per_class: Int = 0, iou_threshold: Float = 0.0,
    score_threshold: Float | None = None, *, center_point_box: int = 0,
) -> Tensor:  # fmt: skip
    """(batch, class, box) of boxes that overlap no better one of their class by more than ``iou_threshold``."""
    corners = _corners(boxes, center_point_box)
    found = []
    for i in range(scores.shape[0]):
        for j in range(scores.shape[1]):
            score = scores[i, j]
            order = torch.argsort(score, descending=True, stable=True)
            if score_threshold is not None:
                order = order[score[order] > score_threshold]
            kept = _greedy(corners[i], order, max_output_boxes_per_class, iou_threshold)
            found.append(torch.stack((torch.full_like(kept, i), torch.full_like(kept, j), kept), 1))
    return torch.cat(found) if found else scores.new_zeros(0, 3, dtype=torch.int64)


def _corners(boxes: Tensor, centered: int) -> Tensor:
    """The lower and the higher corner of each box."""
    a, b = boxes[..., :2], boxes[..., 2:]
    if centered:
        return torch.cat((a - b / 2, a + b / 2), -1)
    return torch.cat((torch.minimum(a, b), torch.maximum(a, b)), -1)


def _greedy(corners: Tensor, order: Tensor, most: int, threshold: float) -> Tensor:
    """The best that is left, until none is; each takes away what it overlaps."""
    kept: list[Tensor] = []
    corners = corners[order]
    while len(order) and len(kept) < most:
        kept.append(order[0])
        best, corners, order = corners[0], corners[1:], order[1:]
        apart = _overlap(best, corners) <= threshold
        corners, order = corners[apart], order[apart]
    return torch.stack(kept) if kept else order[:0]


def _overlap(box: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union; 0 where one of them has no area."""
    sides = torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])
    common = sides.clamp(min=0).prod(1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - common
    return torch.where(common > 0, common / union, 0)


OPS: dict[str, Callable[..., Any]] = {
    "MaxRoiPool": max_roi_pool, "RoiAlign": roi_align_10, "RoiAlign@16": roi_align,
    "NonMaxSuppression": non_max_suppression,
}  # fmt: skip
