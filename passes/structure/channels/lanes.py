"""Where channels stand in a value: an array of their numbers, and what reshaping, cutting and broadcasting make of it.

*Lanes* are int64 of the rank of a value: along axes on which the channels do not vary they have one element, elsewhere
the size of the axis; -1 is an element that is no part. Two elements of one number are one channel. Where channels mix
in runs of ``extent``, number ``extent * r + i`` is the i-th of run r.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

Lanes: TypeAlias = np.ndarray
Dim: TypeAlias = int | str | None
_FACTOR = re.compile(r"\d+|[A-Za-z_]\w*")


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


def varying(lanes: Lanes) -> list[int]:
    """Axes along which there are several."""
    return [a for a, n in enumerate(lanes.shape) if n > 1]


def along(lanes: Lanes, axis: int, rank: int) -> Lanes:
    """Lanes that vary on one axis, or not at all, as those of a value of ``rank`` on ``axis``."""
    return lanes.reshape([-1 if a == axis % rank else 1 for a in range(rank)])


def whole(value: ir.Value, axis: int, extent: int | None = None) -> Lanes | None:
    """All of an axis, in runs of ``extent`` (default: the axis as one run); None where sizes forbid it."""
    full = size(value, axis)
    extent = full if extent is None else extent
    if full is None or extent is None or extent < 1 or full % extent:
        return None
    return along(np.arange(full), axis, len(value.shape or ()))


def covers(lanes: Lanes, value: ir.Value | None, axis: int) -> bool:
    """Whether the lanes are all of that axis of the value, and stand on no other."""
    return varying(lanes) in ([axis % lanes.ndim], []) and lanes.size == size(value, axis) and bool((lanes >= 0).all())


def operand(lanes: Lanes, value: ir.Value) -> tuple[Lanes, list[int]]:
    """What numpy's broadcasting lays under the lanes of a result: lanes of the operand, and the axes that it lacks."""
    shape = dims(value) or []
    ahead = lanes.ndim - len(shape)
    lacks = [a for a in varying(lanes) if a < ahead or shape[a - ahead] == 1]
    own = lanes[tuple(slice(0, 1) if a in lacks else slice(None) for a in range(lanes.ndim))]
    return own.reshape(own.shape[max(ahead, 0) :]), lacks


def slim(lanes: Lanes) -> Lanes:
    """One element along every axis on which all are the same."""
    for axis in varying(lanes):
        first = lanes.take([0], axis)
        lanes = first if (lanes == first).all() else lanes
    return lanes


def unbroken(lanes: Lanes, extent: int, axis: int | None = None) -> bool:
    """Whether runs are whole: in all of the lanes, or in each slab across ``axis``."""
    if extent == 1:
        return True
    slabs = [lanes] if axis is None else np.split(lanes, lanes.shape[axis], axis)
    for slab in slabs:
        numbers, counts = np.unique(slab[slab >= 0], return_counts=True)
        known = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
        runs = {n // extent for n in known}
        if any(len({known.get(r * extent + i) for i in range(extent)}) > 1 for r in runs):
            return False
    return True


def on_one_axis(lanes: Lanes, extent: int) -> bool:
    """Whether every run lies along a single axis, the same for all."""
    axes = varying(lanes)
    return len(axes) < 2 or any(all(unbroken(lanes, extent, b) for b in axes if b != a) for a in axes)


def picked(lanes: Lanes, axis: int, index: np.ndarray, full: int) -> tuple[Lanes, Lanes]:
    """(what ``index`` [n] takes along an axis of size ``full``, what is left with -1 in its places)."""
    wide = np.repeat(lanes, full, axis) if lanes.shape[axis] == 1 else lanes
    left = wide.copy()
    left[(slice(None),) * axis + (index,)] = -1
    return wide.take(index, axis), left


def put_back(lanes: Lanes, axis: int, index: np.ndarray, full: int) -> Lanes:
    """The inverse of taking ``index``: lanes of the whole axis, -1 elsewhere."""
    shape = [full if a == axis else n for a, n in enumerate(lanes.shape)]
    found = np.full(shape, -1, np.int64)
    found[(slice(None),) * axis + (index,)] = lanes
    return found


def reshape(lanes: Lanes, before: Sequence[Dim], after: Sequence[Dim]) -> Lanes | None:
    """Lanes after a Reshape, Flatten, Squeeze or Unsqueeze; None where they mix with an axis of unknown size.

    Axes are matched in blocks of equal products. In a block with an open size the lanes may stand on known sizes at its
    end: they repeat with their period.
    """
    inner: list[int] = []
    wide: list[int] = []
    new: list[int] = []
    for a, b, c, d in _blocks(before, after):
        part = _block(lanes.shape[a:b], before[a:b], after[c:d])
        if part is None:
            count = int(np.prod(_known_end(after[c:d])))
            lanes = _period(lanes, a, b, count)
            part = _block(lanes.shape[a:b], [*before[a : b - 1], count], after[c:d])
        if part is None:
            return None
        inner, wide, new = inner + part[0], wide + part[1], new + part[2]
    return slim(np.broadcast_to(lanes.reshape(inner), wide).reshape(new))


def _known_end(shape: Sequence[Dim]) -> list[int]:
    """The sizes behind the last one that is open."""
    found = list(itertools.takewhile(lambda n: isinstance(n, int), reversed(shape)))
    return [n for n in reversed(found) if isinstance(n, int)]


def _period(lanes: Lanes, a: int, b: int, count: int) -> Lanes:
    """Axes [a, b) as one of ``count`` elements, where the lanes repeat after so many."""
    total = int(np.prod(lanes.shape[a:b]))
    if count < 1 or total % count:
        return lanes
    parts = lanes.reshape(*lanes.shape[:a], total // count, count, *lanes.shape[b:])
    first = parts.take([0], a)
    return (
        first.reshape(*lanes.shape[:a], *[1] * (b - a - 1), count, *lanes.shape[b:])
        if (parts == first).all()
        else lanes
    )


def _block(
    own: Sequence[int], before: Sequence[Dim], after: Sequence[Dim]
) -> tuple[list[int], list[int], list[int]] | None:
    """Sizes of the lanes of one block as they are, as they are spread, and as they become."""
    known = [n for n in (*before, *after) if isinstance(n, int)]
    if all(n == 1 for n in own):
        return [1], [1], [1] * len(after)
    if len(known) == len(before) + len(after):
        return list(own), [n for n in before if isinstance(n, int)], [n for n in after if isinstance(n, int)]
    first = next(i for i, n in enumerate(own) if n > 1)
    tail, count, start = _known_end(before[first:]), 1, len(after)
    for n in reversed(_known_end(after)):
        if count % np.prod(tail):
            count, start = count * n, start - 1
    fits = len(tail) == len(before) - first and all(n in (1, full) for n, full in zip(own[first:], tail, strict=True))
    if not fits or count % np.prod(tail):
        return None
    made = [1] * start + [n for n in after[start:] if isinstance(n, int)]
    return [1, *own[first:]], [count // int(np.prod(tail)), *tail], made


def _blocks(before: Sequence[Dim], after: Sequence[Dim]) -> list[tuple[int, int, int, int]]:
    """Axes [a, b) that become [c, d): the smallest such runs from the front, then from the back; one block between."""
    front, a, c = _matched(before, after)
    back, x, y = _matched(before[a:][::-1], after[c:][::-1])
    n, k = len(before), len(after)
    tail = [(n - q, n - p, k - s, k - r) for p, q, r, s in back][::-1]
    between = [(a, n - x, c, k - y)] if a < n - x or c < k - y else []
    return [*front, *between, *tail]


def _matched(before: Sequence[Dim], after: Sequence[Dim]) -> tuple[list[tuple[int, int, int, int]], int, int]:
    found: list[tuple[int, int, int, int]] = []
    a = c = 0
    while step := _next(before[a:], after[c:]):
        found.append((a, a + step[0], c, c + step[1]))
        a, c = a + step[0], c + step[1]
    return found, a, c


def _next(left: Sequence[Dim], right: Sequence[Dim]) -> tuple[int, int] | None:
    """The fewest axes of both with one product."""
    pairs = [(i, j) for i in range(len(left) + 1) for j in range(len(right) + 1) if i + j]
    for i, j in sorted(pairs, key=lambda p: (p[0] + p[1], abs(p[0] - p[1]))):
        product = _product(left[:i])
        if product is not None and product == _product(right[:j]):
            return i, j
    return None


def _product(shape: Sequence[Dim]) -> tuple[int, frozenset[tuple[str, int]]] | None:
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
