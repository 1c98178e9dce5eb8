"""The best range for a scheme, given a histogram: least expected squared error, or least divergence."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graphpress.observe.histogram import Histogram
from graphpress.scale import scale_and_zero
from graphpress.types import Scheme

_COARSE = 2.0 ** (-np.arange(17) / 2)  # ratios of an extreme, down to 1/256
_FINE = 2.0 ** (np.arange(-7, 8) / 16)  # around the best of those
_CANDIDATES = 2048  # of one end of a range, for the divergence
_AWAY = 1 / 16  # of the large magnitudes (percentile 99): where the small ones (1) are above, values lie away from zero
_LOST = 0.5  # share outside of the range that is never right
_WORSE = 1.5  # error against that of the whole range that values away from zero may get
_Loss = Callable[[np.ndarray, np.ndarray], np.ndarray]


def least_error(histogram: Histogram, lo: float, hi: float, scheme: Scheme) -> tuple[float, float]:
    """The range within [lo, hi] that quantizes what the histogram holds with the least squared error.

    Both ends shrink together where the scheme is symmetric; otherwise each in turn, twice. The ratios form a geometric
    grid down to 1/256, then a finer one (steps of 4.4 percent) around the best.
    """
    edges, counts = histogram.edges()

    def loss(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        return expected_error(edges, counts, low, high, scheme)

    if scheme.symmetric:
        reach = max(-lo, hi)
        best = _shrink(reach, lambda r: loss(np.maximum(-r, min(lo, 0.0)), np.minimum(r, max(hi, 0.0))))
        return -best, best
    low, high = min(lo, 0.0), max(hi, 0.0)
    for _ in range(2 if low and high else 1):
        high = _shrink(max(hi, 0.0), lambda r: loss(np.full_like(r, low), r))  # noqa: B023
        low = -_shrink(-min(lo, 0.0), lambda r: loss(-r, np.full_like(r, high)))  # noqa: B023
    return low, high


def _shrink(end: float, loss: Callable[[np.ndarray], np.ndarray]) -> float:
    if end == 0:
        return 0.0
    near = end * _COARSE
    best = near[np.argmin(loss(near))]
    near = np.minimum(best * _FINE, end)
    return float(near[np.argmin(loss(near))])


def expected_error(edges: np.ndarray, counts: np.ndarray, lo: np.ndarray, hi: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Mean squared error of quantizing with each range [lo[i], hi[i]], for a density constant over each bin.

    The error of rounding to multiples of s has, per element, the antiderivative s**3 * (n / 12 + e**3 / 3) with
    n = round(x / s) and e = x / s - n; beyond the ends of the grid it is (x - end)**3 / 3.

    Args:
        edges: Bin edges of one width, [bins + 1].
        counts: Elements in each bin, [bins].
        lo, hi: Candidate ranges, [candidates].

    Returns:
        [candidates], in squared units of x.
    """
    scale, zero = scale_and_zero(lo, hi, scheme)
    step = scale.astype(np.float64)[:, None]
    low, high = (scheme.qmin - zero)[:, None] * step, (scheme.qmax - zero)[:, None] * step
    inside = np.clip(edges, low, high)
    beyond = edges - inside
    inside /= step
    whole = np.rint(inside)
    inside -= whole
    area = inside * inside
    area *= inside
    area *= 4
    area += whole
    area *= step**3 / 12
    area += beyond * beyond * beyond / 3
    return np.diff(area, axis=1) @ counts / (counts.sum() * (edges[1] - edges[0]))


def least_divergence(histogram: Histogram, scheme: Scheme) -> tuple[float, float]:
    """The range whose quantized histogram diverges least from the original; see ``divergence``.

    Symmetric schemes look at magnitudes and 2**(bits-1) groups, every bin being a candidate (S. Migacz, "8-bit
    inference with TensorRT", GTC 2017; as ``_compute_amax_entropy`` in NVIDIA's pytorch-quantization, the bin at zero
    takes the count of its neighbour, since zero itself is exact, and of equal candidates the largest range wins).
    Asymmetric schemes use 2**bits groups over the range, and search each end in turn, twice.
    """
    first, counts = (histogram.folded() if scheme.symmetric else histogram).span()
    groups = 2 ** (scheme.bits - 1 if scheme.symmetric else scheme.bits)
    zero, size = -first, counts.size
    if zero + 1 < size:
        counts = counts.copy()
        counts[zero] = counts[zero + 1]
    a, b = 0, size
    if size > groups and counts.any():
        for _ in range(2 if zero else 1):
            cuts = _cuts(size - max(a + groups, min(zero + 1, size)))
            b = size - cuts[np.argmin(range_divergence(counts, np.full_like(cuts, a), size - cuts, groups))]
            cuts = _cuts(min(zero, b - groups))
            a = cuts[np.argmin(range_divergence(counts, cuts, np.full_like(cuts, b), groups))]
    low, high = float(first + a) * histogram.width, float(first + b) * histogram.width
    return (-high, high) if scheme.symmetric else (low, high)


def bounded(
    chosen: tuple[float, float], histogram: Histogram, lo: float, hi: float, scheme: Scheme
) -> tuple[float, float]:
    """The range ``chosen`` by divergence, or [lo, hi] (the extremes) where values lie away from zero and lose by it.

    The divergence does not see how far a value is moved. Where values crowd around zero that cuts off what is rare; of
    values that all are 2 +- 0.3 the range up to 1.5 puts all in one group, as the values do, and nothing is left.
    """
    sizes = histogram.folded()
    near = sizes.quantile(0.01) <= _AWAY * sizes.quantile(0.99)
    if near and histogram.outside(*chosen) <= _LOST:
        return chosen
    edges, counts = histogram.edges()
    low, high = np.clip([[chosen[0], -np.inf], [chosen[1], np.inf]], min(lo, 0.0), max(hi, 0.0))
    mine, whole = expected_error(edges, counts, low, high, scheme)
    return chosen if mine <= _WORSE * whole else (lo, hi)


def _cuts(limit: int) -> np.ndarray:
    """How many bins to cut off, from none to ``limit``; thinned out where that is very many."""
    return np.unique(np.linspace(0, limit, min(limit + 1, _CANDIDATES)).astype(np.intp))


def range_divergence(counts: np.ndarray, starts: np.ndarray, stops: np.ndarray, groups: int) -> np.ndarray:
    """Kullback-Leibler divergence KL(P || Q) of each candidate range of bins [starts[i], stops[i]).

    P is the histogram within the range, what lies outside added to its end bins. Q gives every non-empty bin the mean
    of the non-empty bins of its group, without what lies outside; group j holds the bins k with
    j <= (k - start) * groups / (stop - start) < j + 1. Both are normalised. As Q is constant over a group, prefix sums
    over the bins give all candidates at once.

    Args:
        counts: [bins], not all zero.
        starts, stops: [candidates], at least ``groups`` bins apart.

    Returns:
        [candidates], in nats; infinite where something lies outside and the end bin is empty.
    """
    total = counts.sum()
    left, right = _sums(counts)[starts], total - _sums(counts)[stops]
    bounds = starts[:, None] + -(-np.arange(groups + 1) * (stops - starts)[:, None] // groups)
    mass = np.diff(_sums(counts)[bounds], axis=1).astype(np.float64)
    filled = np.diff(_sums(counts > 0)[bounds], axis=1)
    inside = mass.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_q = np.log(mass / filled) - np.log(inside)[:, None]
        cross = np.multiply(mass, log_q, out=np.zeros_like(mass), where=mass > 0).sum(axis=1)
    first, last = counts[starts], counts[stops - 1]
    own = _sums(_xlogx(counts))
    own = own[stops] - own[starts] + _xlogx(first + left) - _xlogx(first) + _xlogx(last + right) - _xlogx(last)
    for outside, end, log_end in ((left, first, log_q[:, 0]), (right, last, log_q[:, -1])):
        log_end = np.where(end > 0, log_end, -np.inf)
        cross += np.multiply(outside, log_end, out=np.zeros(len(cross)), where=outside > 0)
    result: np.ndarray = (own - cross) / total - np.log(total)
    return np.where(inside > 0, result, np.inf)


def _sums(x: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, x.dtype if x.dtype != bool else np.int64), np.cumsum(x)])


def _xlogx(x: np.ndarray) -> np.ndarray:
    return x * np.log(np.maximum(x, 1))
