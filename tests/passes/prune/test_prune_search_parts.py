"""The steps of the search for an order of columns, each against trying everything."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from graphpress.passes.prune import search

PATTERNS = [(2, 4), (1, 4), (3, 4), (1, 2), (2, 3)]


def columns(count: int, rows: int = 5, seed: int = 0) -> np.ndarray:
    """Non-negative scores, columns first."""
    return np.abs(np.random.default_rng(seed).normal(size=(count, rows))).astype(np.float32)


def kept(stripe: np.ndarray, n: int) -> float:
    """The n largest of each row of [m, rows]."""
    return float(np.sort(stripe.astype(np.float64), axis=0)[len(stripe) - n :].sum())


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_a_stripe_keeps_its_largest(n: int, m: int) -> None:
    work = columns(6 * m)
    stripes = np.random.default_rng(1).permutation(6 * m).reshape(6, m)
    expected = [kept(work[s], n) for s in stripes]
    found = search._scores(work[stripes], n)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float64 and search._value(work, stripes, n) == pytest.approx(sum(expected), rel=1e-6)


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize("chunk", [1, 15, 1 << 21])
def test_the_table_says_what_each_column_brings_in_each_place(
    n: int, m: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_CHUNK", chunk)
    work, stripes = columns(3 * m), np.arange(3 * m).reshape(3, m)
    which = np.array([2, 0])
    found = search._table(work, stripes, which, n)
    assert found.shape == (2, m, 3 * m)
    for k, slot, column in itertools.product(range(2), range(m), range(3 * m)):
        changed = stripes[which[k]].copy()
        changed[slot] = column
        assert found[k, slot, column] == pytest.approx(kept(work[changed], n), rel=1e-6)


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize("count", [2, 7])
def test_after_the_swaps_none_gains(n: int, m: int, count: int) -> None:
    work, start = columns(count * m, seed=n), np.arange(count * m).reshape(count, m)
    found = search._swap(work, start, n)
    np.testing.assert_array_equal(start.ravel(), np.arange(count * m))  # its argument is left alone
    assert sorted(found.ravel()) == list(range(count * m))
    total = search._value(work, found, n)
    assert total >= search._value(work, start, n)
    for i, j in itertools.combinations(range(count * m), 2):
        other = found.copy()
        other.ravel()[[i, j]] = other.ravel()[[j, i]]
        assert search._value(work, other, n) <= total * (1 + 2e-6)


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_what_a_swap_gains_is_known_before_it_is_done(n: int, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    floors: list[float] = []
    monkeypatch.setattr(search, "_take", lambda s, gain, floor: seen.append(gain) or floors.append(floor) or set())
    work, stripes = columns(3 * m), np.random.default_rng(2).permutation(3 * m).reshape(3, m)
    search._swap(work, stripes, n)
    before = sum(kept(work[s], n) for s in stripes)
    for i, j in itertools.product(range(3 * m), repeat=2):
        other = stripes.copy()
        other.ravel()[[i, j]] = other.ravel()[[j, i]]
        gained = -np.inf if i // m == j // m else sum(kept(work[s], n) for s in other) - before
        assert seen[0][i, j] == pytest.approx(gained, abs=1e-5)
    assert floors == [pytest.approx(1e-6 * before, rel=1e-5)]


def test_windows_say_whether_one_has_gained_and_are_looked_at_once() -> None:
    work, start, known = columns(8, seed=3), np.arange(8).reshape(2, 4), set[frozenset[bytes]]()
    rng = np.random.default_rng(0)
    better, gained = search.OrderSearch()._windows(work, start, 8, rng, known)
    assert gained and search._value(work, better, 2) > search._value(work, start, 2) and len(known) == 1
    again, gained = search.OrderSearch()._windows(work, better, 8, rng, set())
    assert not gained and again.tolist() == better.tolist()  # it is at its best
    worse, gained = search.OrderSearch()._windows(work, start, 8, rng, {frozenset(s.tobytes() for s in start)})
    assert not gained and worse.tolist() == start.tolist()  # known, and not looked at again
    for width in (0, 4, 7):
        assert search.OrderSearch()._windows(work, start, width, rng, set())[1] is False
    np.testing.assert_array_equal(start.ravel(), np.arange(8))


@pytest.mark.parametrize(("window", "widths"), [(0, [0, 0, 0]), (8, [8, 8, 8]), (12, [8, 8, 8, 12])])
def test_pairs_are_searched_after_each_disturbance_and_larger_windows_once(
    window: int, widths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def windows(self: object, work: np.ndarray, stripes: np.ndarray, width: int, *_: object) -> tuple[np.ndarray, bool]:
        seen.append(width)
        return stripes, False

    monkeypatch.setattr(search.OrderSearch, "_windows", windows)
    search.OrderSearch(window=window, escapes=2).order(columns(12).T)
    assert seen == widths


def test_the_best_swaps_come_first_and_none_of_a_stripe_that_one_has_touched() -> None:
    stripes, gain = np.arange(80).reshape(40, 2), np.zeros((80, 80))
    wanted = [(0, 3, 9.0), (2, 5, 8.0), (6, 9, 7.0), (10, 13, 6.0), (14, 17, 5.0)]  # (2, 5) finds stripe 1 touched
    for i, j, gained in wanted:
        gain[i, j] = gain[j, i] = gained
    assert search._take(stripes, gain, 0.0) == {0, 1, 3, 4, 5, 6}  # more than an eighth: the rest waits
    assert [tuple(s) for s in stripes[:8]] == [(3, 1), (2, 0), (4, 5), (9, 7), (8, 6), (13, 11), (12, 10), (14, 15)]


def test_a_stripe_that_many_would_swap_with_does_not_hide_the_others() -> None:
    stripes, gain = np.arange(80).reshape(40, 2), np.zeros((80, 80))
    for i, j, gained in [(0, 2, 9.0), (0, 4, 8.0), (0, 6, 7.0), (0, 8, 6.0), (0, 10, 5.0), (20, 23, 1.0)]:
        gain[i, j] = gain[j, i] = gained
    assert search._take(stripes, gain, 0.0) == {0, 1, 10, 11}


def test_swaps_that_gain_no_more_than_the_floor_are_left() -> None:
    stripes, gain = np.arange(8).reshape(4, 2), np.zeros((8, 8))
    gain[0, 2] = gain[2, 0] = 1.0
    assert search._take(stripes, gain, 1.0) == set() and search._take(stripes, gain, 0.99) == {0, 1}


@pytest.mark.parametrize(("size", "m", "number"), [(8, 4, 35), (6, 2, 15), (12, 4, 5775), (6, 3, 10), (4, 4, 1)])
def test_all_partitions_are_listed_once_and_the_one_as_it_stands_first(size: int, m: int, number: int) -> None:
    subsets, partitions = search._partitions(size, m)
    assert len(subsets) == math.comb(size, m) and partitions.shape == (number, size // m)
    assert subsets[partitions[0]].ravel().tolist() == list(range(size))
    sets = {frozenset(frozenset(s) for s in subsets[p].tolist()) for p in partitions}
    assert len(sets) == number and all(sorted(subsets[p].ravel()) == list(range(size)) for p in partitions)


@pytest.mark.parametrize(("size", "n", "m"), [(8, 2, 4), (8, 1, 4), (6, 1, 2), (6, 2, 3), (12, 2, 4)])
def test_the_best_partition_is_the_best_of_all(size: int, n: int, m: int) -> None:
    work = columns(size, seed=3)
    every = list(itertools.combinations(range(size), m))
    score = {c: kept(work[list(c)], n) for c in every}

    def most(left: frozenset[int]) -> float:
        if not left:
            return 0.0
        first = min(left)
        return max(score[c] + most(left - set(c)) for c in every if c[0] == first and set(c) <= left)

    best = most(frozenset(range(size)))
    found = search._best_partition(work, n, m)
    assert found is not None and search._value(work, found, n) == pytest.approx(best, rel=1e-6)
    assert search._best_partition(work[found.ravel()], n, m) is None  # it stands so already


def test_a_gain_of_rounding_counts_for_nothing() -> None:
    work = np.zeros((4, 1), np.float64)
    for small, taken in ((1e-7, False), (1e-4, True)):
        work[:, 0] = 1, small, 0, 0  # in two stripes 1 + small, in one only 1
        assert (search._best_partition(work, 1, 2) is not None) == taken


def test_windows_are_all_or_a_sample() -> None:
    assert [search._windows_of(*c) for c in ((5, 2), (5, 1), (6, 3), (2, 2))] == [10, 0, 20, 1]
    rng = np.random.default_rng(0)
    assert search._some(4, 2, 6, rng) == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    drawn = search._some(4, 2, 5, rng)
    assert len(drawn) == 5 and all(a < b for a, b in drawn)
    many = search._some(30, 3, 200, rng)
    assert len(many) == 200 and all(len(set(w)) == 3 and w == sorted(w) for w in many)
    assert {i for w in many for i in w} == set(range(30))


def test_a_disturbance_is_three_to_eight_swaps_between_stripes() -> None:
    start = np.arange(4000).reshape(1000, 4)
    moved = set()
    for seed in range(60):
        found = search._disturb(start, np.random.default_rng(seed))
        assert sorted(found.ravel()) == list(range(4000))
        away = found != start
        assert away.sum(axis=1).max() <= 2
        moved.add(int(away.sum()))
    np.testing.assert_array_equal(start.ravel(), np.arange(4000))
    assert {6, 16} <= moved <= set(range(4, 17))
    pair = [search._disturb(np.array([[0], [1]]), np.random.default_rng(s)).ravel().tolist() for s in range(20)]
    odd = [int(np.random.default_rng(s).integers(3, 9)) % 2 for s in range(20)]  # the first draw is how many
    assert pair == [[1, 0] if o else [0, 1] for o in odd] and 0 < sum(odd) < 20


def test_an_order_is_tidy() -> None:
    assert search._tidy(np.array([[7, 2], [5, 1], [0, 6]])).tolist() == [0, 6, 1, 5, 2, 7]
