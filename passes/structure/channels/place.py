"""Where a change of basis sits in a value, and where that is after the value was reshaped or broadcast."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace

import onnx_ir as ir

Dim = int | str | None


@dataclass(frozen=True)
class Place:
    """Consecutive runs of ``extent`` elements along ``axis``, from ``start`` up to ``stop``, each turned the same way.

    Attributes:
        axis: Counted from the front.
        extent: Elements that mix with one another.
        start: The first element of the first run.
        stop: The end of the last run.
    """

    axis: int
    extent: int
    start: int
    stop: int

    def on(self, axis: int) -> Place:
        """The same runs of another axis."""
        return replace(self, axis=axis)

    def moved(self, by: int) -> Place:
        """The same runs, ``by`` elements further along the axis."""
        return replace(self, start=self.start + by, stop=self.stop + by)

    def covers(self, value: ir.Value) -> bool:
        """Whether the runs make up the whole axis."""
        return (self.start, self.stop) == (0, size(value, self.axis))


def whole(value: ir.Value, axis: int, extent: int | None = None) -> Place | None:
    """The place of runs of ``extent`` (default: the axis as one run) of all of an axis; None where sizes forbid it."""
    full = size(value, axis)
    rank = len(value.shape) if value.shape is not None else 0
    extent = full if extent is None else extent
    if full is None or extent is None or extent < 1 or full % extent:
        return None
    return Place(axis % rank, extent, 0, full)


def dims(value: ir.Value | None) -> list[Dim] | None:
    """The dimensions: numbers, names, None for unknown; None where even the rank is."""
    if value is None or value.shape is None:
        return None
    return [d if isinstance(d, int) else d.value for d in value.shape]


def size(value: ir.Value | None, axis: int) -> int | None:
    """The size of an axis where it is a known number."""
    shape = dims(value)
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    found = shape[axis]
    return found if isinstance(found, int) else None


def aligned(value: ir.Value, axis: int, rank: int) -> int | None:
    """The axis of ``value`` that numpy's broadcasting lays on ``axis`` of a result of ``rank``; None where it has none.

    An axis of size 1 counts as none.
    """
    shape = dims(value)
    if shape is None:
        return None
    own = axis - (rank - len(shape))
    return None if own < 0 or shape[own] == 1 else own


def reshaped(place: Place, old: ir.Value, new: ir.Value) -> Place | str:
    """Where the runs are after a Reshape; or why they are in no one axis any more."""
    before, after = dims(old), dims(new)
    if before is None or after is None:
        return "the shapes around its Reshape are not known"
    stride, lead = _product(before[place.axis + 1 :]), _product(before[: place.axis])
    full = before[place.axis]
    for axis, dim in enumerate(after):
        if not isinstance(dim, int) or dim % place.extent or (dim == 1 and place.extent == 1):
            continue
        same_stride = stride is not None and _product(after[axis + 1 :]) == stride
        same_place = lead is not None and dim == full and _product(after[:axis]) == lead
        if same_stride or same_place:
            if dim == full:
                return place.on(axis)
            if (place.start, place.stop) == (0, full):
                return Place(axis, place.extent, 0, dim)
            return "a Reshape cuts through the part of the axis that is turned"
    return "a Reshape breaks up the channels that mix"


_FACTOR = re.compile(r"\d+|[A-Za-z_]\w*")


def _product(shape: list[Dim]) -> tuple[int, frozenset[tuple[str, int]]] | None:
    """The number of elements as (number, names with their powers); None where a dimension is unknown."""
    number, names = 1, Counter[str]()
    for dim in shape:
        if dim is None:
            return None
        factors = str(dim).replace(" ", "").split("*")
        if not all(_FACTOR.fullmatch(f) for f in factors):
            factors = [f"({dim})"]
        for factor in factors:
            if factor.isdigit():
                number *= int(factor)
            else:
                names[factor] += 1
    return number, frozenset(names.items())
