"""OrderSearch for an order of columns under which an n:m mask keeps more. No graph.

Only the partition into *stripes* of m columns counts, not the order in a stripe or of stripes. Greedy swaps of two
columns, then exhaustive search in windows of several stripes, both until nothing is gained or a bound is reached, and
random disturbances whose result is kept where it is better. (Pool and Yu, Channel Permutations for N:M Sparsity,
NeurIPS 2021.)
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np

from graphpress.passes.prune import masks

_GAIN = 1e-6  # share of the whole below which a gain is rounding
_TURNS = 100  # swaps and windows by turns, at most: real weights rest after fewer than 10
_SWAPS = 50  # rounds of swaps for each stripe, at most: every round gains, so this bounds rounding alone
_CHUNK = 1 << 21  # elements of a temporary


@dataclass(frozen=True)
class OrderSearch:
    """How far to look.

    Attributes:
        n, m: The pattern.
        window: Columns searched exhaustively at a time: 0 (swaps only), or two or three stripes.
        escapes: Random disturbances after the search has come to rest.
        windows: Windows looked at in one round where there are more.
        rows: Rows that are looked at where there are more: a random sample.
        seed: Of the sample, the windows and the disturbances.
    """

    n: int = 2
    m: int = 4
    window: int = 12
    escapes: int = 20
    windows: int = 600
    rows: int = 1024
    seed: int = 0

    def order(self, score: np.ndarray) -> np.ndarray:
        """The columns of ``score`` ([rows, columns], non-negative) in the order found; never worse than as they are."""
        count = score.shape[1]
        if count % self.m or count < 2 * self.m:
            return np.arange(count)
        rng = np.random.default_rng(self.seed)
        part = score if len(score) <= self.rows else score[np.sort(rng.choice(len(score), self.rows, replace=False))]
        work = np.ascontiguousarray(part.T, np.float32)  # columns first: each is read whole
        known: set[frozenset[bytes]] = set()
        pairs = min(self.window, 2 * self.m)  # larger windows cost too much to go through them more than once
        best = self._settle(work, np.arange(count).reshape(-1, self.m), pairs, rng, known)
        total = _value(work, best, self.n)
        small = _windows_of(len(best), pairs // self.m) <= self.windows  # else windows are drawn anew anyway
        for _ in range(self.escapes if small else 0):
            other = self._settle(work, _disturb(best, rng), pairs, rng, known)
            if (value := _value(work, other, self.n)) > total * (1 + _GAIN):
                best, total = other, value
        if self.window > pairs:
            best = self._settle(work, best, self.window, rng, known)
        order = _tidy(best)
        as_it_is = masks.kept(score, self.n, self.m)
        return order if masks.kept(score[:, order], self.n, self.m) > as_it_is else np.arange(count)

    def _settle(
        self, work: np.ndarray, stripes: np.ndarray, width: int, rng: np.random.Generator, known: set[frozenset[bytes]]
    ) -> np.ndarray:
        """Swaps and windows by turns until neither gains; ``known`` are windows that are at their best."""
        for _ in range(_TURNS):
            stripes = _swap(work, stripes, self.n)
            stripes, gained = self._windows(work, stripes, width, rng, known)
            if not gained:
                break
        return stripes

    def _windows(
        self, work: np.ndarray, stripes: np.ndarray, width: int, rng: np.random.Generator, known: set[frozenset[bytes]]
    ) -> tuple[np.ndarray, bool]:
        size = min(width // self.m, len(stripes))
        if size < 2:
            return stripes, False
        stripes, gained = np.sort(stripes, axis=1), False
        for chosen in _some(len(stripes), size, self.windows, rng):
            window = frozenset(s.tobytes() for s in stripes[chosen])
            if window in known:
                continue
            columns = stripes[chosen].reshape(-1)
            better = _best_partition(work[columns], self.n, self.m)
            if better is not None:
                stripes[chosen], gained = np.sort(columns[better], axis=1), True
            known.add(frozenset(s.tobytes() for s in stripes[chosen]))
        return stripes, gained


def _value(work: np.ndarray, stripes: np.ndarray, n: int) -> float:
    return float(_scores(work[stripes], n).sum())


def _scores(stripes: np.ndarray, n: int) -> np.ndarray:
    """What each stripe of [stripes, m, rows] keeps."""
    m = stripes.shape[1]
    if (n, m) == (2, 4):  # the two larger of two pairs, without sorting
        a, b = np.maximum(stripes[:, 0], stripes[:, 1]), np.minimum(stripes[:, 0], stripes[:, 1])
        c, d = np.maximum(stripes[:, 2], stripes[:, 3]), np.minimum(stripes[:, 2], stripes[:, 3])
        least = np.maximum(np.minimum(a, c), np.maximum(b, d))
        two: np.ndarray = (np.maximum(a, c) + least).sum(axis=1, dtype=np.float64)
        return two
    top = np.partition(stripes, m - n, axis=1)[:, m - n :]
    found: np.ndarray = top.sum(axis=(1, 2), dtype=np.float64)
    return found


def _swap(work: np.ndarray, stripes: np.ndarray, n: int) -> np.ndarray:
    """Swap the pair of columns that gains most, and others of other stripes in the same round, until none gains.

    With a column taken out, a stripe keeps the n - 1 best of the rest and the better of the next and what comes in:
    so one table of sums says what every swap gives.
    """
    stripes = stripes.copy()
    count, m = stripes.shape
    scores = _scores(work[stripes], n)
    floor = _GAIN * scores.sum()
    table = _table(work, stripes, np.arange(count), n)  # [stripe, slot, incoming column]
    for _ in range(_SWAPS * count):
        flat = table.reshape(count * m, -1)[:, stripes.reshape(-1)]  # by place: out of here, in from there
        own = np.repeat(scores, m)
        gain = flat + flat.T - own[:, None] - own[None, :]
        same = np.arange(count * m) // m
        gain[same[:, None] == same[None, :]] = -np.inf
        touched = _take(stripes, gain, floor)
        if not touched:
            break
        changed = np.array(sorted(touched))
        scores[changed] = _scores(work[stripes[changed]], n)
        table[changed] = _table(work, stripes, changed, n)
    return stripes


def _take(stripes: np.ndarray, gain: np.ndarray, floor: float) -> set[int]:
    """Do the best swaps, few at a time, whose stripes no better one has touched; the stripes touched."""
    (count, m), touched = stripes.shape, set[int]()
    rows, columns = np.nonzero(np.triu(gain) > floor)
    best = np.argsort(-gain[rows, columns], kind="stable")[: 4 * len(gain)]
    for i, j in zip(rows[best].tolist(), columns[best].tolist(), strict=True):
        s, t = i // m, j // m
        if s not in touched and t not in touched:
            touched |= {s, t}
            stripes[s, i % m], stripes[t, j % m] = stripes[t, j % m], stripes[s, i % m]
        if len(touched) * 8 > count:
            break
    return touched


def _table(work: np.ndarray, stripes: np.ndarray, which: np.ndarray, n: int) -> np.ndarray:
    """What stripes ``which`` keep with the column of a slot replaced by another: [which, slots, columns]."""
    m, (columns, rows) = stripes.shape[1], work.shape
    table, ones = np.empty((len(which), m, columns)), np.ones(rows, np.float32)
    for k, stripe in enumerate(which):
        for slot in range(m):
            rest = np.sort(work[np.delete(stripes[stripe], slot)], axis=0)[::-1]  # [m - 1, rows], largest first
            sure = rest[: n - 1].sum(dtype=np.float64)
            step = max(1, _CHUNK // max(rows, 1))
            for start in range(0, columns, step):
                part = np.maximum(work[start : start + step], rest[n - 1])
                table[k, slot, start : start + step] = sure + part @ ones
    return table


def _best_partition(window: np.ndarray, n: int, m: int) -> np.ndarray | None:
    """The best partition of a window's columns ([columns, rows]) into stripes, [stripes, m]; None where it has it."""
    subsets, partitions = _partitions(len(window), m)
    scores = np.concatenate([_scores(window[s], n) for s in np.array_split(subsets, 1 + subsets.size // 512)])
    values = scores[partitions].sum(axis=1)
    best = int(np.argmax(values))
    if values[best] <= values[0] * (1 + _GAIN):
        return None
    found: np.ndarray = subsets[partitions[best]]
    return found


@functools.cache
def _partitions(columns: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """All subsets of m columns, and all partitions into such as rows of their numbers; first the one as it stands."""
    subsets = list(itertools.combinations(range(columns), m))
    number = {s: i for i, s in enumerate(subsets)}

    def split(left: tuple[int, ...]) -> list[tuple[int, ...]]:
        if not left:
            return [()]
        first, rest = left[0], left[1:]
        found = []
        for others in itertools.combinations(rest, m - 1):
            remaining = tuple(c for c in rest if c not in others)
            found += [(number[(first, *others)], *p) for p in split(remaining)]
        return found

    return np.array(subsets), np.array(split(tuple(range(columns))))


def _windows_of(count: int, size: int) -> int:
    return math.comb(count, size) if size > 1 else 0


def _some(count: int, size: int, most: int, rng: np.random.Generator) -> list[list[int]]:
    """Windows of ``size`` of ``count`` stripes: all, or ``most`` at random."""
    if _windows_of(count, size) <= most:
        return [list(c) for c in itertools.combinations(range(count), size)]
    return [sorted(rng.choice(count, size, replace=False).tolist()) for _ in range(most)]


def _disturb(stripes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A few swaps of columns of different stripes at random: fewer than three fall back to where they came from."""
    stripes = stripes.copy()
    for _ in range(int(rng.integers(3, 9))):
        s, t = rng.choice(len(stripes), 2, replace=False)
        i, j = rng.integers(0, stripes.shape[1], 2)
        stripes[s, i], stripes[t, j] = stripes[t, j], stripes[s, i]
    return stripes


def _tidy(stripes: np.ndarray) -> np.ndarray:
    """Stripes as an order of columns: each sorted, by their first columns."""
    inside = np.sort(stripes, axis=1)
    order: np.ndarray = inside[np.argsort(inside[:, 0])].reshape(-1)
    return order
