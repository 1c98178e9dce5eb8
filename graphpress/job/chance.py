"""What a figure taken from some samples says of all of them: intervals of 95 %."""

from __future__ import annotations

import enum
import functools
import math

import numpy as np

_Z = 1.959963984540054  # of the normal distribution, both sides together 5 %


class Verdict(enum.StrEnum):
    """Of a figure, or of all of them together."""

    PASSED = "passed"
    FAILED = "failed"
    UNSURE = "not enough samples to tell"


def share(right: float, of: float) -> tuple[float, float]:
    """Wilson's interval of a share (E. B. Wilson, 1927, "Probable inference"), of ``right`` out of ``of`` trials.

    Returns:
        Its ends; (0, 1) without trials.
    """
    if of <= 0:
        return 0.0, 1.0
    p, z2 = right / of, _Z * _Z / of
    middle, half = p + z2 / 2, _Z * math.sqrt(p * (1 - p) / of + z2 / (4 * of))
    return max((middle - half) / (1 + z2), 0.0), min((middle + half) / (1 + z2), 1.0)


def share_of_many(shares: np.ndarray, trials: int) -> tuple[float, float]:
    """The interval of a mean share where each sample holds many trials that go together (positions of a sequence).

    Wilson's interval for as many independent trials as would spread the mean so much (Kish's effective sample size).

    Args:
        shares: One a sample, [samples].
        trials: In all samples together: the effective number is not above it.
    """
    mean, n = float(shares.mean()), len(shares)
    spread = float(shares.var(ddof=1)) / n if n > 1 else 0.0
    effective = mean * (1 - mean) / spread if spread > 0 else float(trials if n > 1 else n)
    effective = min(max(effective, n), trials)
    return share(mean * effective, effective)


def mean(values: np.ndarray) -> tuple[float, float]:
    """Student's interval of a mean, of independent ``values`` [samples]; everything where there is one sample."""
    if len(values) < 2:
        return -math.inf, math.inf
    half = student(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()) - half, float(values.mean()) + half


@functools.cache
def student(freedom: int) -> float:
    """What Student's t of so many degrees of freedom exceeds, on either side, with a chance of 5 %.

    Newton's steps on the finite sums of M. Abramowitz and I. Stegun (26.7.3, 26.7.4), which are concave: from below
    they never go too far. scipy has it too, and takes longer to import than a small model's gate to run.
    """
    odd = freedom % 2
    counts = 2.0 * np.arange(1, (freedom - odd) // 2) + odd
    peak = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    t, step = _Z, math.inf
    while step > 1e-14 * t:
        angle, cosine2 = math.atan(t / math.sqrt(freedom)), freedom / (freedom + t * t)
        terms = 1 + float(np.cumprod((counts - 1) / counts * cosine2).sum()) if freedom > 1 else 0.0
        within = math.sin(angle) * terms
        if odd:
            within = 2 / math.pi * (angle + math.sqrt(cosine2) * within)
        step = (0.95 - within) / (2 * math.exp(peak + math.log(cosine2) * (freedom + 1) / 2))
        t += step
    return t


def mean_loss(values: np.ndarray, most: float) -> tuple[float, float]:
    """The interval of a mean of losses that are 0 for most samples: Student's, its upper end no lower than with
    one sample more, which loses ``most``.

    Where nothing is lost the values have no spread, and Student's interval would be a point. With the one sample more
    its end is ``most`` (1 + t) / (n + 1), t of n degrees of freedom: the rule of three (J. A. Hanley, A. Lippman-Hand,
    1983, "If nothing goes wrong, is everything all right?"). One sample at the bound: T. W. Anderson (1969).

    Args:
        values: One a sample, [samples].
        most: What a sample can lose.
    """
    low, high = mean(values)
    return low, max(high, mean(np.append(values, most))[1])


def at_least(value: float, low: float, high: float, bar: float) -> Verdict:
    """Whether a share reaches a bar: it does, and lacks hardly more than twice what may be lacking; or it cannot be."""
    if value >= bar and low >= 1 - 2 * (1 - bar):
        return Verdict.PASSED
    return Verdict.UNSURE if high >= bar else Verdict.FAILED


def at_most(value: float, low: float, high: float, bar: float) -> Verdict:
    """Whether a loss stays below a bar: it does, and is hardly more than twice as large; or it does not, for certain or
    for all that is likely while a good part of it is certain."""
    if value <= bar:
        return Verdict.PASSED if high <= 2 * bar else Verdict.UNSURE
    return Verdict.FAILED if low > bar / 4 else Verdict.UNSURE
