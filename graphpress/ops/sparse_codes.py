"""n:4 weights as values and 2-bit places: what ``SparseWeight`` and ``SparseMatMul`` store. No graph.

The reduction axis is last while packed: of each 4 neighbours along it n values are kept, and where each stood, 0 to 3,
four places to a byte, the first in the lowest bits. A weight of E elements of b bits takes n E (b + 2) / 4 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GROUP = 4
_PLACES = 4  # in a byte


@dataclass(frozen=True)
class Packed:
    """One weight.

    Attributes:
        values: [..., K n / 4], the reduction axis last.
        indices: uint8, [ceil(values / 4)].
        n: Kept of each four.
        shape: Of the dense weight with the reduction axis last.
        perm: The Transpose that puts its axes back.
    """

    values: np.ndarray
    indices: np.ndarray
    n: int
    shape: tuple[int, ...]
    perm: tuple[int, ...]


def pack(weight: np.ndarray, axis: int, n: int) -> Packed | None:
    """The weight packed along ``axis``; None where it has not the pattern n:4 there."""
    axis %= weight.ndim
    moved = np.moveaxis(weight, axis, -1)
    if moved.shape[-1] % GROUP:
        return None
    groups = moved.reshape(-1, GROUP)
    filled = groups != 0
    if (np.count_nonzero(filled, axis=1) > n).any():
        return None
    # Places of zeros fill up where a group has fewer than n.
    places = np.sort(np.argsort(~filled, axis=1, kind="stable")[:, :n], axis=1)
    values = np.take_along_axis(groups, places, axis=1)
    order = [a for a in range(weight.ndim) if a != axis] + [axis]
    return Packed(
        values.reshape(*moved.shape[:-1], -1), _bytes(places.ravel()), n, moved.shape, tuple(np.argsort(order).tolist())
    )


def unpack(packed: Packed) -> np.ndarray:
    """The dense weight, bit for bit."""
    n = packed.n
    bits = packed.indices[:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    places = bits.ravel()[: packed.values.size].reshape(-1, n).astype(np.int64)
    groups = np.zeros((len(places), GROUP), packed.values.dtype)
    np.put_along_axis(groups, places, packed.values.reshape(-1, n), axis=1)
    return np.ascontiguousarray(groups.reshape(packed.shape).transpose(packed.perm))


def _bytes(places: np.ndarray) -> np.ndarray:
    filled = np.pad(places.astype(np.uint8), (0, -len(places) % _PLACES)).reshape(-1, _PLACES)
    packed: np.ndarray = (filled << np.array([0, 2, 4, 6], np.uint8)).sum(axis=1, dtype=np.uint8)
    return packed
