"""Which samples stand for all: bins of a set by the GraphCut gain (Dataset Quantization, arXiv:2308.10524, section 3).

Bins are filled one after the other, each greedily by ``G(x | S) = trade * sum_pool sim(x, p) - 2 * sum_S sim(x, p)``
with ``sim = 1/2 + 1/2 cos``. The pool shrinks, so the first bins hold what is central, the last what is unlike all.
The cosine is a product of unit vectors, so sums over a pool are products with one vector: no matrix of all pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np


def unit(features: np.ndarray) -> np.ndarray:
    """Rows of length 1 in float32, [samples, features]; a row of zeros stays: it is like everything by a half."""
    rows = features.reshape(len(features), -1).astype(np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)


def similarity(rows: np.ndarray, other: np.ndarray, count: int = 1) -> np.ndarray:
    """The sum of similarities of each unit row to ``count`` others, of which ``other`` is the sum."""
    found: np.ndarray = (count + rows @ other) / 2
    return found


def bins(rows: np.ndarray, count: int, trade: float = 1.0) -> Iterator[np.ndarray]:
    """``count`` disjoint bins of all samples, equal in size but for one.

    Args:
        rows: Unit vectors, [samples, features].
        count: At most as many as there are samples.
        trade: What it is worth to be like the pool, against being unlike what the bin holds.

    Yields:
        Positions in ``rows``, in the order in which they were taken; of the last bin what is left.
    """
    left = np.arange(len(rows))
    for later in range(count, 1, -1):
        taken = greedy(rows[left], -(-len(left) // later), trade)
        yield left[taken]
        left = np.delete(left, taken)
    yield left


def greedy(pool: np.ndarray, size: int, trade: float = 1.0) -> np.ndarray:
    """Positions of the ``size`` rows of largest gain, each given those before it."""
    gain = trade * similarity(pool, pool.sum(axis=0), len(pool))
    taken = []
    for _ in range(size):
        taken.append(int(np.argmax(gain)))
        gain -= 2 * similarity(pool, pool[taken[-1]])
        gain[taken] = -np.inf
    return np.asarray(taken, np.intp)


def shares(total: int, sizes: Iterable[int]) -> list[int]:
    """``total`` split in proportion to ``sizes`` and within them, rounded by the largest remainders."""
    known = list(sizes)
    exact = [total * s / sum(known) for s in known]
    found = [int(e) for e in exact]
    order = sorted(range(len(known)), key=lambda i: (found[i] - exact[i], i))
    for i in order[: total - sum(found)]:
        found[i] += 1
    return found


def covering(rows: np.ndarray, samples: int, count: int, trade: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Some of each bin, drawn without replacement: the same share of every one.

    Args:
        rows: Unit vectors, [all samples, features].
        samples: How many, at most all.
        count: Of bins.
        trade: As for ``bins``.
        rng: Draws.

    Returns:
        Positions in ``rows``, bin by bin.
    """
    found = list(bins(rows, min(count, len(rows)), trade))
    return [rng.choice(b, n, replace=False) for b, n in zip(found, shares(samples, map(len, found)), strict=True)]
