"""How a Reshape, Flatten, Squeeze or Unsqueeze carries atoms along: axes are matched block by block. No graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

Dim: TypeAlias = int | str  # a size, or the name of one that is not known
Block: TypeAlias = tuple[int, int, int, int]  # axes [a, b) of what goes in become axes [c, d)


def reshape(atoms: np.ndarray, before: Sequence[Dim], after: Sequence[Dim]) -> np.ndarray | None:
    """Atoms (1 along axes that they do not vary on) in the new shape, or None where sizes do not say."""
    wide: list[int] = []
    new: list[int] = []
    for a, b, c, d in _blocks(before, after):
        if all(n == 1 for n in atoms.shape[a:b]):
            wide += [1] * (b - a)
            new += [1] * (d - c)
            continue
        sizes = [*before[a:b], *after[c:d]]
        if not all(isinstance(n, int) for n in sizes):
            if b - a == d - c == 1:
                return None  # atoms along an axis of unknown size
            return None
        wide += [int(n) for n in before[a:b]]
        new += [int(n) for n in after[c:d]]
    return slim(np.broadcast_to(atoms, wide).reshape(new))


def slim(atoms: np.ndarray) -> np.ndarray:
    """One element along every axis on which the atoms are all the same."""
    for axis in range(atoms.ndim):
        first = atoms.take([0], axis)
        if atoms.shape[axis] > 1 and (atoms == first).all():
            atoms = first
    return atoms


def _blocks(before: Sequence[Dim], after: Sequence[Dim]) -> list[Block]:
    """Smallest runs of axes with equal products, from the front; from the back behind the first that cannot be told."""
    front, a, c = _matched(before, after)
    if a == len(before) and c == len(after):
        return front
    back, x, y = _matched(before[a:][::-1], after[c:][::-1])
    n, k = len(before), len(after)
    tail = [(n - q, n - p, k - s, k - r) for p, q, r, s in back][::-1]
    return [*front, (a, n - x, c, k - y), *tail]


def _matched(before: Sequence[Dim], after: Sequence[Dim]) -> tuple[list[Block], int, int]:
    """Blocks from the front, and the axes of both at which it cannot go on."""
    found: list[Block] = []
    a = c = 0
    while a < len(before) or c < len(after):
        block = _next(before, after, a, c)
        if block is None:
            break
        found.append(block)
        a, c = block[1], block[3]
    return found, a, c


def _next(before: Sequence[Dim], after: Sequence[Dim], a: int, c: int) -> Block | None:
    left, right = before[a:], after[c:]
    if left and right and left[0] == right[0]:
        return a, a + 1, c, c + 1
    if left and left[0] == 1:
        return a, a + 1, c, c
    if right and right[0] == 1:
        return a, a, c, c + 1
    i = j = 0
    product_in = product_out = 1
    while True:
        if product_in == product_out and i and j:
            return a, a + i, c, c + j
        grow_in = product_in <= product_out
        side, at = (left, i) if grow_in else (right, j)
        if at >= len(side) or not isinstance(side[at], int) or side[at] == 0:
            return None
        if grow_in:
            product_in, i = product_in * int(side[at]), i + 1
        else:
            product_out, j = product_out * int(side[at]), j + 1
