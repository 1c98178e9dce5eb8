"""Latency of two runners side by side: interleaved runs, so that a drifting machine does not favour one.

The runners must not spin while they idle: the one would slow the other down.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Sequence

from graphpress.runner import Arrays, Runner

_AGREE = 1.25  # the ends of the interval may differ by this factor
_KNOWN, _ROUGHLY = 1.02, 1.05  # likewise where measuring may end, and where it may be in a hurry
_FEW, _LOOK = 30, 10  # pairs behind which that is looked at, and how often: often enough to end, too seldom to pick
_MANY = 100  # runs
_MISSED = 0.025  # chance that the median lies below the interval, and above it


def compare_latency(
    a: Runner, b: Runner, feeds: Arrays, seconds: float = 1.0, least: int = 5, hurry: float = math.inf
) -> dict[str, float]:
    """Median milliseconds ``before`` (a) and ``after`` (b), and the median of the pairwise ``ratio`` b/a.

    Measuring ends after ``seconds``, or once the ratio is known to two per cent, after ``hurry`` seconds to five.
    ``ratio_low`` and ``ratio_high`` hold the true median with a chance of 95 %, ``runs`` is the number of pairs, and
    ``busy`` 1 where these ends lie further apart than a quarter: something else ran on the machine.
    """
    for runner in (a, b):
        runner(feeds)
    pairs: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(pairs) < least or not _enough(pairs, time.perf_counter() - start, seconds, hurry):
        pairs.append((_once(a, feeds), _once(b, feeds)))
    ratios = _ratios(pairs)
    low, high = _interval(ratios)
    return {
        "before": 1e3 * statistics.median(p[0] for p in pairs),
        "after": 1e3 * statistics.median(p[1] for p in pairs),
        "ratio": statistics.median(ratios),
        "runs": float(len(pairs)),
        "ratio_low": low,
        "ratio_high": high,
        "busy": float(high > _AGREE * low),
    }


def _enough(pairs: Sequence[tuple[float, float]], spent: float, seconds: float, hurry: float) -> bool:
    if spent >= seconds or len(pairs) < _FEW or len(pairs) % _LOOK:
        return spent >= seconds
    low, high = _interval(_ratios(pairs))
    return high <= (_ROUGHLY if spent >= hurry else _KNOWN) * low


def _ratios(pairs: Sequence[tuple[float, float]]) -> list[float]:
    return sorted(after / before for before, after in pairs)


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """The order statistics between which the median lies with a chance of 95 % by the binomial law; of few the ends."""
    count = len(values)
    if count > _MANY:  # the law is as good as normal
        rank = math.floor(count / 2 - 0.98 * math.sqrt(count))
    else:
        below = itertools.accumulate(math.comb(count, k) / 2**count for k in range(count))
        rank = max(sum(chance <= _MISSED for chance in below) - 1, 0)
    return values[rank], values[count - 1 - rank]


def _once(runner: Runner, feeds: Arrays) -> float:
    start = time.perf_counter()
    runner(feeds)
    return time.perf_counter() - start
