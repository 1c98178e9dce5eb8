"""Values between the places of a picture, at coordinates that are data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TypeAlias

import torch

from graphpress.backends.fx.operands import Tensor

Tap: TypeAlias = tuple[Tensor, Tensor]  # index along one axis, weight; both (batch, point)


def taps(x: Tensor, axes: Sequence[Sequence[Tap]]) -> Tensor:
    """(batch, channel, point): the weighted sum over all combinations of the taps of each axis.

    Args:
        x: (batch, channel, *sizes).
        axes: The taps of each axis of ``sizes``; every index is in range.
    """
    sizes = x.shape[2:]
    flat = x.reshape(x.shape[0], x.shape[1], math.prod(sizes))
    total = None
    for combination in itertools.product(*axes):
        index, weight = combination[0]
        for (place, factor), size in zip(combination[1:], sizes[1:], strict=True):
            index, weight = index * size + place, weight * factor
        found = flat.gather(2, index.unsqueeze(1).expand(-1, x.shape[1], -1)) * weight.unsqueeze(1)
        total = found if total is None else total + found
    assert total is not None
    return total


def linear(x: Tensor, coordinates: Sequence[Tensor]) -> Tensor:
    """N-linear, with zeros all around; coordinates (batch, point) count from the centre of the first place."""
    axes = []
    for where, size in zip(coordinates, x.shape[2:], strict=True):
        low = where.floor()
        part = where - low
        axes.append([inside(low, 1 - part, size), inside(low + 1, part, size)])
    return taps(x, axes)


def inside(place: Tensor, weight: Tensor, size: int) -> Tap:
    """A tap without weight where it is out of range."""
    there = (place >= 0) & (place < size)
    return place.clamp(0, size - 1).long(), torch.where(there, weight, 0)


def cubic(distance: Tensor, a: float) -> Tensor:
    """The weight of a tap that far away: Keys' kernel (IEEE Trans. ASSP 29(6), 1981, eq. 4)."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0))
