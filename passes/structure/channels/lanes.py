"""Where channels stand in a value: an array of their numbers, and what reshaping, cutting and broadcasting make of it.

*Lanes* are int64 of the rank of a value: along axes on which the channels do not vary they have one element, elsewhere
the size of the axis; -1 is an element that is no part. Two elements of one number are one channel. Where channels mix
in runs of ``extent``, number ``extent * r + i`` is the i-th of run r.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

Lanes: TypeAlias = np.ndarray
Dim: TypeAlias = int | str | None
_PRIMES = (5, 7, 11, 13, 17, 19, 23, 29)  # stand for sizes that have a name


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


def ranked(lanes: Lanes, rank: int) -> Lanes:
    """As lanes of a value of a higher rank, by numpy's broadcasting."""
    return lanes.reshape((1,) * (rank - lanes.ndim) + lanes.shape)


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


def on_one_axis(lanes: Lanes, extent: int, axes: Sequence[int] | None = None) -> bool:
    """Whether every run is whole and lies along a single axis (one of ``axes``), the same for all."""
    if extent == 1 or not (lanes >= 0).any():
        return True
    for axis in varying(lanes) if axes is None else axes:
        rows = np.moveaxis(lanes, axis, -1).reshape(-1, lanes.shape[axis])
        row, place = np.nonzero(rows >= 0)
        run, member = np.divmod(rows[row, place], extent)
        _, which = np.unique(row * (run.max() + 1) + run, return_inverse=True)
        counts = np.bincount(which * extent + member, minlength=extent * (which.max() + 1)).reshape(-1, extent)
        if (counts == counts[:, :1]).all():
            return True
    return False


def told_apart(lanes: Lanes, extent: int) -> Lanes:
    """Runs of one number at several places have numbers of their own: what they were, plus multiples of a period."""
    flat, period = lanes.reshape(-1), extent * (int(lanes.max(initial=0)) // extent + 1)
    return np.asarray(np.where(flat < 0, flat, flat + period * appearance(flat))).reshape(lanes.shape)


def appearance(flat: np.ndarray) -> np.ndarray:
    """For each place how often its number stood before it, [places]."""
    order = np.argsort(flat, kind="stable")
    _, starts, counts = np.unique(flat[order], return_index=True, return_counts=True)
    found = np.empty(len(flat), np.int64)
    found[order] = np.arange(len(flat)) - np.repeat(starts, counts)
    return found


def components(count: int, pairs: Sequence[tuple[Lanes, Lanes]]) -> np.ndarray:
    """For each of ``count`` numbers the least of those joined with it: numbers at equal places of a pair are."""
    found = np.arange(count)
    flat = [np.stack(np.broadcast_arrays(a, b)).reshape(2, -1) for a, b in pairs]
    a, b = np.concatenate([np.zeros((2, 0), np.int64), *flat], 1)
    while not np.array_equal(found[a], found[b]):
        np.minimum.at(found, np.maximum(found[a], found[b]), np.minimum(found[a], found[b]))
        while not np.array_equal(found, found[found]):
            found = found[found]
    return found


def reshape(lanes: Lanes, before: Sequence[Dim], after: Sequence[Dim]) -> Lanes | None:
    """Lanes after a Reshape, Flatten, Squeeze or Unsqueeze; None where they mix with an axis of unknown size."""
    found = reshapes(lanes, before, after)
    mixed = any(not isinstance(after[a], int) for made in found for a in varying(made))
    return None if mixed or not all(np.array_equal(made, found[0]) for made in found) else next(iter(found), None)


def reshapes(lanes: Lanes, before: Sequence[Dim], after: Sequence[Dim]) -> list[Lanes]:
    """Likewise, with numbers for sizes that are not known; where several fit, for each of them."""
    sizes = _sizes([n if n > 1 else d for n, d in zip(lanes.shape, before, strict=True)], after)
    return [slim(np.broadcast_to(lanes, old).reshape(new)) for old, new in sizes]


def _sizes(before: Sequence[Dim], after: Sequence[Dim]) -> Iterator[tuple[list[int], list[int]]]:
    """Shapes of one number of elements that two shapes with open sizes may stand for."""
    named = [{f for dim in shape if dim is not None for f in factors(dim)} for shape in (before, after)]
    numbers = dict(zip(sorted(f for f in named[0] & named[1] if not f.isdigit()), _PRIMES, strict=False))
    known = [[number(dim, numbers) for dim in shape] for shape in (before, after)]
    counts = [math.prod(n for n in shape if n is not None) for shape in known]
    gaps = [[a for a, n in enumerate(shape) if n is None] for shape in known]
    total = math.lcm(*counts) * (3 if all(gaps) else 1)
    if any(not g and n != total for g, n in zip(gaps, counts, strict=True)) or not total:
        return
    for chosen in itertools.product(*(g or [-1] for g in gaps)):  # one open axis has all that is left
        old, new = (
            [n or (total // count if a == at else 1) for a, n in enumerate(shape)]
            for shape, count, at in zip(known, counts, chosen, strict=True)
        )
        yield old, new


def factors(dim: int | str) -> list[str]:
    """What a dimension is a product of: numbers and names; another expression as a whole."""
    found = str(dim).replace(" ", "").split("*")
    return found if all(re.fullmatch(r"\d+|[A-Za-z_]\w*", f) for f in found) else [f"({dim})"]


def number(dim: Dim, numbers: Mapping[str, int]) -> int | None:
    """What stands for a dimension, or None where it is open; ``numbers``: of names."""
    found = [int(f) if f.isdigit() else numbers.get(f) for f in factors(dim)] if dim is not None else [None]
    return None if None in found else math.prod(n for n in found if n is not None)
