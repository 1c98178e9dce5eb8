"""How few bits codes could take: each a word of its own length, frequent ones short (Huffman, 1952)."""

from __future__ import annotations

import heapq

import numpy as np


def huffman_bits(codes: np.ndarray) -> int:
    """Bits of all words of an optimal prefix code, without its table; integers of any type and shape.

    A single symbol needs one bit each.
    """
    counts = np.unique(codes.astype(np.int32), return_counts=True)[1].tolist()
    if len(counts) < 2:
        return sum(counts)
    total = 0
    heapq.heapify(counts)
    while len(counts) > 1:  # what two subtrees hold becomes one bit longer
        both = heapq.heappop(counts) + heapq.heappop(counts)
        total += both
        heapq.heappush(counts, both)
    return total
