"""Observers: histograms that forget nothing, and ranges held to brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphpress.errors import BadRequest
from graphpress.observe import ranges
from graphpress.observe.histogram import SIDE, Histogram
from graphpress.observe.observers import OBSERVERS, Observer, Range, observer
from graphpress.scale import scale_and_zero
from graphpress.types import PER_TOKEN, Scheme, per_channel

MAGNITUDES = st.floats(-(2.0**40), 2.0**40, width=32).map(lambda v: np.float32(v) if abs(v) > 1e-12 else np.float32(0))
ARRAYS = hnp.arrays(np.float32, st.integers(1, 60), elements=MAGNITUDES)


def histogram(x: np.ndarray) -> Histogram:
    result = Histogram()
    result.add(x, float(np.abs(x).max(initial=0)))
    return result


def scheme(name: str, dtype: str = "uint8", symmetric: bool = False) -> Scheme:
    return Scheme(dtype, symmetric=symmetric, observer=name)


def watch(x: np.ndarray, of: Scheme, batch: int | None = None) -> Range:
    """What an observer says of ``x``, samples first, in batches."""
    seen = observer(of, len(x))
    for i in range(0, len(x), batch or len(x)):
        part = x[i : i + (batch or len(x))]
        seen.update(part, len(part))
    return seen.range()


@given(st.lists(ARRAYS, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_a_histogram_does_not_depend_on_order_or_grouping(parts: list[np.ndarray], random: object) -> None:
    whole = histogram(np.concatenate(parts))
    random.shuffle(parts)  # type: ignore[attr-defined]
    grown = Histogram()
    for part in parts:
        grown.add(part, float(np.abs(part).max()))
    assert grown.exponent == whole.exponent
    np.testing.assert_array_equal(grown.counts, whole.counts)


@given(ARRAYS)
def test_every_element_is_in_the_bin_that_the_definition_says(x: np.ndarray) -> None:
    found = histogram(x)
    expected = np.zeros(2 * SIDE, np.int64)
    for v in x.tolist():
        expected[math.floor(v / found.width) + SIDE] += 1
    np.testing.assert_array_equal(found.counts, expected)
    peak = np.abs(x).max()
    assert peak == 0 or SIDE / 2 <= peak / found.width < SIDE
    _, width, bins = found.coarse(64)
    assert sum(bins) == x.size and len(bins) <= 64 and math.log2(width).is_integer()


def test_quantile_mean_and_share_are_right_to_one_bin() -> None:
    x = np.random.default_rng(0).normal(2, 3, 100_000).astype(np.float32)
    found = histogram(x)
    for share in (0.01, 0.5, 0.99):
        assert abs(found.quantile(share) - np.quantile(x, share)) <= 2 * found.width
    assert abs(found.mean() - x.mean()) <= found.width / 2
    assert abs(found.outside(-1.0, 5.0) - np.mean((x < -1) | (x > 5))) <= 2e-4
    assert abs(found.folded().quantile(0.99) - np.quantile(np.abs(x), 0.99)) <= 2 * found.width


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_ranges_do_not_depend_on_the_batch_size(name: str, symmetric: bool) -> None:
    x = np.random.default_rng(0).standard_t(4, (24, 50, 7)).astype(np.float32)
    results = {watch(x, scheme(name, symmetric=symmetric), batch) for batch in (1, 5, 24)}
    assert len(results) == 1
    found = results.pop()
    assert found.minimum == x.min() and found.maximum == x.max() and found.count == x.size
    assert found.minimum <= found.lo <= 0 <= found.hi <= found.maximum
    assert found.saturated == pytest.approx(np.mean((x < found.lo) | (x > found.hi)), abs=1e-3)


@pytest.mark.parametrize("name", OBSERVERS)
def test_dead_empty_and_broken_values_are_told_apart(name: str) -> None:
    dead = watch(np.zeros((4, 3), np.float32), scheme(name))
    assert dead.dead and (dead.lo, dead.hi, dead.saturated) == (0, 0, 0)
    empty = watch(np.zeros((4, 0), np.float32), scheme(name))
    assert empty.count == 0
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    x[1, 1], x[2, 2] = np.nan, np.inf
    broken = watch(x, scheme(name), batch=1)
    assert (broken.nonfinite, broken.count) == (2, 12) and math.isfinite(broken.lo + broken.hi) and not broken.dead
    nothing = watch(np.full((2, 2), np.nan, np.float32), scheme(name))
    assert nothing.nonfinite == nothing.count == 4 and (nothing.lo, nothing.hi) == (0, 0)


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("value", [5.0, -0.25, 1e-30, 3e38])
def test_a_constant_keeps_its_value_in_the_range(name: str, value: float) -> None:
    found = watch(np.full((3, 2), value, np.float32), scheme(name))
    ends = {found.lo, found.hi}
    assert 0.0 in ends and max(map(abs, ends)) == pytest.approx(abs(value), rel=0.07)


def test_minmax_and_moving_average_follow_their_definitions() -> None:
    x = np.random.default_rng(0).normal(size=(200, 30)).astype(np.float32)
    found = watch(x, scheme("minmax"), 7)
    assert (found.lo, found.hi) == (x.min(), x.max())
    lo, hi = float(x[0].min()), float(x[0].max())
    for row in x[1:]:
        lo, hi = 0.99 * lo + 0.01 * float(row.min()), 0.99 * hi + 0.01 * float(row.max())
    found = watch(x, scheme("moving_average"), 7)
    assert (found.lo, found.hi) == pytest.approx((lo, hi), rel=1e-6)


def test_percentile_cuts_the_share_that_was_asked_for() -> None:
    x = np.random.default_rng(0).laplace(size=(100, 2000)).astype(np.float32)
    found = watch(x, scheme("percentile"))
    assert (found.lo, found.hi) == pytest.approx(np.quantile(x, [0.00005, 0.99995]), rel=0.02)
    found = watch(x, scheme("percentile:99", "int8", True))
    assert (-found.lo, found.hi) == pytest.approx([np.quantile(np.abs(x), 0.99)] * 2, rel=2e-3)
    assert found.saturated == pytest.approx(0.01, abs=2e-4)
    everything = watch(x, scheme("percentile:100"))
    assert (everything.lo, everything.hi) == (x.min(), x.max())


def error(x: np.ndarray, lo: float, hi: float, of: Scheme) -> float:
    """Mean squared error of really quantizing."""
    scale, zero = scale_and_zero(lo, hi, of)
    codes = np.clip(np.rint(x / scale) + zero, of.qmin, of.qmax) - zero
    return float(np.mean((codes * scale - x.astype(np.float64)) ** 2))


DATA = {
    "normal": lambda r: r.normal(size=20_000),
    "relu": lambda r: np.maximum(r.normal(size=20_000), 0),
    "heavy": lambda r: r.standard_t(3, 20_000),
    "silu": lambda r: (lambda v: v / (1 + np.exp(-v)))(r.normal(0, 3, 20_000)),
    "shifted": lambda r: r.normal(20, 1, 20_000),
    "negative": lambda r: -r.exponential(size=20_000),
    "outlier": lambda r: np.append(r.normal(size=20_000), 100.0),
}


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize(("dtype", "symmetric"), [("uint8", False), ("int8", True), ("int4", True), ("uint4", False)])
def test_mse_is_within_two_percent_of_trying_all_ranges(kind: str, dtype: str, symmetric: bool) -> None:
    x = DATA[kind](np.random.default_rng(0)).astype(np.float32)
    of = scheme("mse", dtype, symmetric)
    found = watch(x[None], of)
    ratios = 2.0 ** (-np.arange(0, 8, 0.1))
    if symmetric:
        reach = np.abs(x).max()
        tried = [error(x, max(-reach * r, x.min()), min(reach * r, x.max()), of) for r in ratios]
    else:
        lows = [min(x.min(), 0) * r for r in ratios[::2]] if x.min() < 0 else [0]
        highs = [max(x.max(), 0) * r for r in ratios[::2]] if x.max() > 0 else [0]
        tried = [error(x, lo, hi, of) for lo in lows for hi in highs]
    assert error(x, found.lo, found.hi, of) <= 1.02 * min(tried)


def test_the_expected_error_is_the_error_of_evenly_spread_elements() -> None:
    rng = np.random.default_rng(0)
    edges, counts = np.arange(-20, 31) * 0.25, rng.integers(0, 50, 50)
    x = np.concatenate([np.linspace(a, b, 4001)[:-1] for a, b in itertools.pairwise(edges)])
    weights = np.repeat(counts / counts.sum() / 4000, 4000)
    for of in (
        scheme("mse", "uint4"),
        scheme("mse", "int4", True),
        scheme("mse", "uint8"),
        scheme("mse", "int2", True),
    ):
        lo, hi = np.array([-5.0, -1.0, -0.3, 0.0]), np.array([7.5, 2.0, 7.0, 3.0])
        found = ranges.expected_error(edges, counts, lo, hi, of)
        scale, zero = scale_and_zero(lo, hi, of)
        for i in range(lo.size):
            codes = np.clip(np.rint(x / scale[i]) + zero[i], of.qmin, of.qmax) - zero[i]
            assert found[i] == pytest.approx(weights @ (codes * scale[i] - x) ** 2, rel=1e-3)


def brute_divergence(counts: np.ndarray, start: int, stop: int, groups: int) -> float:
    """The published algorithm, bin by bin."""
    p = counts[start:stop].astype(float)
    size = stop - start
    group = np.digitize(np.arange(size), np.linspace(0, size, groups + 1)) - 1
    q = np.zeros(size)
    for g in range(groups):
        members = (group == g) & (counts[start:stop] > 0)
        q[members] = counts[start:stop][members].sum() / max(members.sum(), 1)
    p[0] += counts[:start].sum()
    p[-1] += counts[stop:].sum()
    p, q = p / p.sum(), q / max(q.sum(), 1)
    if (q[p > 0] == 0).any():
        return math.inf
    return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())


@given(hnp.arrays(np.int64, st.integers(9, 40), elements=st.integers(0, 9)), st.data())
def test_the_divergence_is_that_of_the_published_algorithm(counts: np.ndarray, data: st.DataObject) -> None:
    counts[len(counts) // 2] += 1
    groups = data.draw(st.sampled_from([2, 4, 8]))
    start = data.draw(st.integers(0, len(counts) - groups))
    stop = data.draw(st.integers(start + groups, len(counts)))
    found = ranges.range_divergence(counts, np.array([start]), np.array([stop]), groups)[0]
    assert found == pytest.approx(brute_divergence(counts, start, stop, groups), abs=1e-9)


@pytest.mark.parametrize("kind", ["normal", "relu", "heavy"])
def test_entropy_takes_the_bin_that_brute_force_takes(kind: str) -> None:
    x = DATA[kind](np.random.default_rng(0)).astype(np.float32)
    of = scheme("entropy", "int4", True)
    found = watch(x[None], of)
    seen = histogram(x)
    counts = seen.folded().counts[SIDE:].copy()
    counts = counts[: np.flatnonzero(counts)[-1] + 1]
    counts[0] = counts[1]
    stops = range(8, len(counts) + 1, 1 if kind == "relu" else 16)
    losses = {stop: brute_divergence(counts, 0, stop, 8) for stop in stops}
    mine = ranges.range_divergence(counts, np.zeros(1, int), np.array([round(found.hi / seen.width)]), 8)[0]
    assert mine <= min(losses.values()) + 1e-9
    if kind == "relu":
        best = max(s for s, loss in losses.items() if loss <= min(losses.values()) + 1e-12)
        assert found.hi == pytest.approx(min(best * seen.width, x.max()), abs=1e-6)


def test_entropy_cuts_a_lone_outlier_and_leaves_an_even_spread_alone() -> None:
    rng = np.random.default_rng(0)
    for symmetric in (True, False):
        of = scheme("entropy", "int8", symmetric)
        found = watch(np.append(rng.normal(size=100_000), 40.0).astype(np.float32)[None], of)
        assert found.hi < 10
        found = watch(rng.uniform(-1, 1, 100_000).astype(np.float32)[None], of)
        assert found.hi > 0.95 and found.lo < -0.95


def kept(x: np.ndarray, of: Scheme, batch: int) -> float:
    """Decibels of what the observer's range leaves of ``x``."""
    found = watch(x, of, batch)
    scale, zero = (v.astype(np.float64)[0] for v in scale_and_zero(np.array([found.lo]), np.array([found.hi]), of))
    wide = x.astype(np.float64)
    noise = (np.clip(np.rint(wide / scale) + zero, of.qmin, of.qmax) - zero) * scale - wide
    return float(10 * np.log10((wide**2).sum() / max((noise**2).sum(), 1e-300)))


FORMATS = [("uint8", False), ("int8", True), ("int8", False), ("uint4", False), ("int4", True)]
SHAPES = {
    "normal": lambda rng: rng.normal(size=(40, 50)).clip(-4, 4) / 4, "even": lambda rng: rng.uniform(-1, 1, (40, 50)),
    "exponential": lambda rng: rng.exponential(0.1, (40, 50)) - 1, "two": lambda rng: rng.choice([-1.0, 1.0], (40, 50)),
    "constant": lambda rng: np.zeros((40, 50)),
}  # fmt: skip


@settings(max_examples=40)
@given(
    st.sampled_from(list(SHAPES)), st.sampled_from(FORMATS), st.floats(1.2, 1e4), st.sampled_from([1.0, -1.0]),
    st.sampled_from([1e-6, 1.0, 1e5]), st.booleans(), st.integers(0, 9),
)  # fmt: skip
def test_entropy_of_values_away_from_zero_is_no_worse_than_minmax(shape, form, middle, sign, unit, both, seed) -> None:
    rng = np.random.default_rng(seed)
    x = sign * unit * (middle + SHAPES[shape](rng))
    if both:
        x *= rng.choice([-1, 1], x.shape)
    one, other = (kept(x.astype(np.float32), scheme(name, *form), 8) for name in ("entropy", "minmax"))
    assert one >= min(other, 120) - 3


@pytest.mark.parametrize("form", FORMATS)
def test_entropy_keeps_values_of_two_give_or_take_a_little(form: tuple[str, bool]) -> None:
    x = np.random.default_rng(34).normal(2, 0.3, (200, 64)).astype(np.float32)
    assert kept(x, scheme("entropy", *form), 200) >= kept(x, scheme("minmax", *form), 200) - 0.5


@pytest.mark.parametrize("kind", ["normal", "relu", "heavy"])
@pytest.mark.parametrize("form", FORMATS)
def test_entropy_of_values_around_zero_is_the_least_divergence(kind: str, form: tuple[str, bool]) -> None:
    x, of = DATA[kind](np.random.default_rng(0)).astype(np.float32), scheme("entropy", *form)
    found, (lo, hi) = watch(x[None], of), ranges.least_divergence(histogram(x), of)
    low, high = float(min(x.min(), 0)), float(max(x.max(), 0))
    assert (found.lo, found.hi) == (max(lo, low), min(hi, high))


@pytest.mark.parametrize("name", OBSERVERS)
def test_a_restored_observer_goes_on_bit_for_bit(name: str) -> None:
    x = np.random.default_rng(0).normal(size=(10, 9)).astype(np.float32)
    first, second = observer(scheme(name), 10), observer(scheme(name), 10)
    first.update(x[:4], 4)
    second.restore({k: np.array(v) for k, v in first.state().items()})
    for seen in (first, second):
        seen.update(x[4:], 6)
    assert first.range() == second.range() and first.range().bins == second.range().bins


def test_large_values_are_thinned_evenly_and_their_extremes_seen() -> None:
    seen = observer(scheme("mse"), 4)
    x = np.random.default_rng(0).normal(size=(4, 64, 80, 80)).astype(np.float32)
    x[3, 63, 79, 79] = 50
    seen.update(x, 4)
    assert seen.maximum == 50 and seen.count == x.size
    assert seen.histogram.total <= 1.1 * type(seen).BINNED
    columns = seen._thin(np.arange(80, dtype=np.float32)[None].repeat(64 * 80, 0).reshape(1, -1), 1)
    assert np.bincount(columns.ravel().astype(int)).std() < 1  # every column as often


def test_other_floating_types_and_shapes_that_no_sample_divides() -> None:
    for dtype in (np.float16, np.float64):
        found = watch(np.linspace(-2, 3, 30, dtype=dtype).reshape(5, 6), scheme("mse"))
        assert (found.minimum, found.maximum) == (-2, 3)
    seen = observer(scheme("moving_average"), 4)
    seen.update(np.float32([1, 2, 3, 4, 5]), 4)
    assert seen.range().hi == 5
    seen.update(np.float32(7), 1)
    assert seen.count == 6


def test_unknown_observers_and_arguments_are_refused() -> None:
    with pytest.raises(BadRequest, match=r"no observer 'percentil'\. Did you mean 'percentile'"):
        observer(scheme("percentil"), 1)
    with pytest.raises(BadRequest, match="takes no argument '3'"):
        observer(scheme("minmax:3"), 1)
    for wrong in ("x", "101", "10"):
        with pytest.raises(BadRequest, match=f"{wrong!r} is no percentile"):
            observer(scheme(f"percentile:{wrong}"), 1)
    with pytest.raises(BadRequest, match="per_tensor, not per_channel:1"):
        observer(Scheme(granularity=per_channel(1)), 1)
    assert isinstance(observer(Scheme(granularity=PER_TOKEN, dynamic=True), 1), Observer)
