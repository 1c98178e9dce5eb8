"""Codes of few values stored without idle bits: what ``UnpackCodes`` holds. No graph.

Codes of 2 values take 1 bit each, eight to a byte, of 3 values five to a byte (1.6 bits), of 4 values 2 bits; up to 8
values 3 bits, as two planes: the lower two bits of all codes, four to a byte, and the upper ones, eight to a byte. What
comes first stands in the lowest digit. Two codes that a runtime reads from one byte are *nibbles*: the lower ones of
all bytes come first, then the upper ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NIBBLE = 16
_PER_BYTE = {2: 8, 3: 5, 4: 4}  # codes, by how many values they have
_UPPER = 2  # values of the upper plane
_NONE = np.zeros(1, np.uint8)  # the upper plane of what has none


@dataclass(frozen=True)
class Dense:
    """One array of integers.

    Attributes:
        low, high: The planes, uint8; ``high`` is one zero where ``base`` values are all.
        base: Values of the lower plane.
        high_base: Values of the upper one; 1: there is none.
        lowest, step: The lowest integer, and what lies between two neighbours.
        nibbles: Codes in an element: 1, or 2.
        shape: Of the array.
    """

    low: np.ndarray
    high: np.ndarray
    base: int
    high_base: int
    lowest: int
    step: int
    nibbles: int
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(self.low.nbytes + self.high.nbytes)


def pack(array: np.ndarray, *, nibbles: int = 1) -> Dense | None:
    """The array packed as densely as its values allow; None where they are more than 8 or lie further apart.

    Args:
        array: Integers of any shape, not empty.
        nibbles: 2: elements are bytes of two codes each.
    """
    codes = array.astype(np.int16).reshape(-1)
    codes = np.concatenate([codes % NIBBLE, codes // NIBBLE]) if nibbles > 1 else codes
    lowest, highest = int(codes.min()), int(codes.max())
    values, step = highest - lowest + 1, 1
    if values == 3 and not (codes == lowest + 1).any():
        values, step = 2, 2
    digits = (codes - lowest) // step
    base = next((b for b in _PER_BYTE if values <= b), max(_PER_BYTE))
    if values > base * _UPPER:
        return None
    above = _UPPER if values > base else 1
    high = _written(digits // base, above) if above > 1 else _NONE
    return Dense(_written(digits % base, base), high, base, above, lowest, step, nibbles, array.shape)


def unpack(dense: Dense) -> np.ndarray:
    """The array, of int16."""
    count = int(np.prod(dense.shape)) * dense.nibbles
    digits = _read(dense.low, dense.base)[:count]
    if dense.high_base > 1:
        digits = digits + dense.base * _read(dense.high, dense.high_base)[:count]
    planes = (digits * dense.step + dense.lowest).reshape(dense.nibbles, -1)
    places = NIBBLE ** np.arange(dense.nibbles)
    found: np.ndarray = (places @ planes).reshape(dense.shape).astype(np.int16)
    return found


def powers(base: int) -> np.ndarray:
    """What the digits of a byte count, from the first on; [codes in a byte]."""
    return base ** np.arange(_PER_BYTE.get(base, 1))


def _written(digits: np.ndarray, base: int) -> np.ndarray:
    places = powers(base)
    filled = np.pad(digits, (0, -len(digits) % len(places))).reshape(-1, len(places))
    found: np.ndarray = (filled @ places).astype(np.uint8)
    return found


def _read(plane: np.ndarray, base: int) -> np.ndarray:
    found: np.ndarray = (plane[:, None].astype(np.int64) // powers(base) % base).reshape(-1)
    return found
