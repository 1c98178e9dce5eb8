"""The dual transform of loud channels: ``X R1 P R2``, two greedy block rotations and a zigzag order between them.

A Hadamard matrix spreads one loud channel over all, and leaves its size in every one of them; a rotation that knows
where the loud channels are can even them out, and the order deals them to blocks in turn (Lin et al., "DuQuant",
arXiv:2406.01721, section 3.2; LRQ-DiT, "ARS", takes it where activations are large).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphpress.passes.rotate.orders import exists, hadamard

BLOCK = 128  # channels that a rotation mixes, at most: as in the paper
_STEPS = 64  # greedy rotations that are tried in a row


@dataclass(frozen=True, eq=False)
class DualTransform:
    """What turns a row of channels.

    Attributes:
        first, second: [k, b, b], float64 and orthogonal.
        order: [k b]: the channel that comes to each place between the two.
    """

    first: np.ndarray
    order: np.ndarray
    second: np.ndarray

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """``rows M`` for [.., k b]."""
        moved = _by_block(rows, self.first)[..., self.order]
        return _by_block(moved, self.second)


def block_of(width: int) -> int:
    """Channels in a block: the largest divisor of the width up to ``BLOCK`` that leaves two blocks; 1 of a prime."""
    return max((d for d in range(1, min(BLOCK, width // 2) + 1) if width % d == 0), default=1)


def dual_transform(rows: np.ndarray, rng: np.random.Generator) -> DualTransform:
    """The transform of channels that look like those of ``rows`` [tokens, channels]."""
    rows = np.asarray(rows, np.float64)
    block = block_of(rows.shape[1])
    first = _greedy(rows.reshape(len(rows), -1, block).swapaxes(0, 1), rng)
    turned = _by_block(rows, first)
    order = zigzag(np.abs(turned).max(axis=0), len(first))
    second = _greedy(turned[:, order].reshape(len(rows), -1, block).swapaxes(0, 1), rng)
    return DualTransform(first, order, second)


def zigzag(loudness: np.ndarray, blocks: int) -> np.ndarray:
    """The order that deals channels to blocks from the loudest on, there and back, so that blocks are equally loud.

    Args:
        loudness: [channels].
        blocks: How many, of neighbours; they divide the channels.
    """
    rounds = np.argsort(-loudness, kind="stable").reshape(-1, blocks)  # one channel for each block
    rounds[1::2] = rounds[1::2, ::-1]
    return np.asarray(rounds.T.reshape(-1))


def _by_block(rows: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    k, b, _ = matrices.shape
    apart = rows.reshape(-1, k, b).swapaxes(0, 1)
    return np.asarray((apart @ matrices).swapaxes(0, 1).reshape(rows.shape))


def _greedy(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each block the product of rotations, each of its loudest channel then, that leaves the smallest peak.

    Args:
        rows: [blocks, tokens, channels of a block].
    """
    blocks, _, width = rows.shape
    best = np.repeat(np.eye(width)[None], blocks, axis=0)
    whole, least = best, np.abs(rows).max(axis=(1, 2))
    for _ in range(_STEPS if width > 1 else 0):
        step = _spreading(width, np.abs(rows).max(axis=1).argmax(axis=1), rng)
        rows, whole = rows @ step, whole @ step
        peak = np.abs(rows).max(axis=(1, 2))
        best = np.where((peak < least)[:, None, None], whole, best)
        least = np.minimum(peak, least)
    return best


def _spreading(width: int, loudest: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[blocks, width, width]: one rotation that spreads its first channel evenly, with the loudest in its place.

    The paper draws the other rows at random. Those of a Hadamard matrix spread the other loud channels evenly too, and
    left 0.5 to 0.7 times the error at 4 bits; they are shuffled, and taken where there is a matrix of that order.
    """
    if exists(width):
        even = hadamard(width)[rng.permutation(width)] * rng.choice([-1.0, 1.0], width) / np.sqrt(width)
    else:
        draw = rng.normal(size=(width, width))
        draw[:, 0] = 1.0
        even = np.linalg.qr(draw)[0].T  # its first row is that of ones, normalised, up to the sign
    swap = np.repeat(np.arange(width)[None], len(loudest), axis=0)
    each = np.arange(len(loudest))
    swap[each, 0], swap[each, loudest] = loudest, 0
    return even[swap[:, :, None], swap[:, None, :]]
