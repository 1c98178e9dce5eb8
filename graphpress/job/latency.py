"""Latency of two runners side by side: interleaved runs, so that a drifting machine does not favour one.

The runners must not spin while they idle: the one would slow the other down.
"""

from __future__ import annotations

import statistics
import time

from graphpress.runner import Arrays, Runner


def compare_latency(a: Runner, b: Runner, feeds: Arrays, seconds: float = 1.0, least: int = 5) -> dict[str, float]:
    """Median milliseconds ``before`` (a) and ``after`` (b), and the median of the pairwise ``ratio`` b/a."""
    for runner in (a, b):
        runner(feeds)
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(pairs) < least or time.perf_counter() < end:
        pairs.append((_once(a, feeds), _once(b, feeds)))
    return {
        "before": 1e3 * statistics.median(p[0] for p in pairs),
        "after": 1e3 * statistics.median(p[1] for p in pairs),
        "ratio": statistics.median(p[1] / p[0] for p in pairs),
        "runs": float(len(pairs)),
    }


def _once(runner: Runner, feeds: Arrays) -> float:
    start = time.perf_counter()
    runner(feeds)
    return time.perf_counter() - start
