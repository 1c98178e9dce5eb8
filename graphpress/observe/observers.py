"""Observers: what is remembered of the values of one tensor, and the range that each makes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from graphpress.errors import BadRequest, nearest
from graphpress.observe.histogram import Histogram
from graphpress.observe.ranges import bounded, least_divergence, least_error
from graphpress.types import Kind, Scheme

_SHOWN = 64  # bins of the histogram in a report


@dataclass(frozen=True)
class Range:
    """What calibration found about one value.

    Attributes:
        lo, hi: The range its scheme's observer chose; always holds 0.
        minimum, maximum: The true extremes of the finite elements (0 where there were none).
        count: Elements seen.
        nonfinite: How many of them were NaN or infinite (they are left out of everything else).
        mean: Of the binned elements, to half a bin (the extreme over 2048).
        saturated: Share of the binned elements outside [lo, hi].
        start, width, bins: A histogram of at most 64 bins: bin i starts at ``start + i * width``.
    """

    lo: float
    hi: float
    minimum: float
    maximum: float
    count: int
    nonfinite: int = 0
    mean: float = 0.0
    saturated: float = 0.0
    start: float = 0.0
    width: float = 0.0
    bins: tuple[int, ...] = field(default=(), repr=False)

    @property
    def dead(self) -> bool:
        """It was zero wherever it was looked at."""
        return self.minimum == self.maximum == 0.0


class Observer:
    """Statistics of one value, updated batch by batch. The base class is ``minmax``: the true extremes.

    ``BINNED`` bounds how many elements of the whole data go into the histogram, spread evenly over samples and
    positions; the extremes see every element. With up to that many elements everything is binned.
    """

    BINNED: ClassVar[int] = 1 << 16  # the histogram is only shown
    FIELDS: ClassVar[tuple[str, ...]] = ("minimum", "maximum", "count", "nonfinite")

    def __init__(self, scheme: Scheme, samples: int, argument: str = "") -> None:
        if argument:
            raise BadRequest(f"takes no argument {argument!r}", where=f"observer {scheme.observer!r}")
        self.scheme = scheme
        self.minimum, self.maximum = math.inf, -math.inf
        self.count = self.nonfinite = 0
        self.histogram = Histogram()
        self._binned = -(-self.BINNED // max(samples, 1))  # of each sample

    def update(self, x: np.ndarray, samples: int) -> None:
        """See one batch: any shape and floating type, ``samples`` samples; empty ones are fine."""
        rows = np.ascontiguousarray(x, np.float32).reshape(samples if x.size % samples == 0 else 1, -1)
        self.count += rows.size
        if not rows.size:
            return
        low, high = float(rows.min()), float(rows.max())
        if not math.isfinite(low) or not math.isfinite(high):
            finite = rows[np.isfinite(rows)]
            self.nonfinite += rows.size - finite.size
            if not finite.size:
                return
            rows, low, high = finite.reshape(1, -1), float(finite.min()), float(finite.max())
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self._extremes(rows)
        self.histogram.add(self._thin(rows, samples).ravel(), max(-low, high))

    def _thin(self, rows: np.ndarray, samples: int) -> np.ndarray:
        """Every n-th element, n coprime to the size of a sample, so that no row or channel is favoured."""
        length = rows.shape[1]
        step = max(1, length * len(rows) // samples // self._binned)
        while step > 1 and math.gcd(step, length) > 1:
            step += 1
        return rows[:, ::step]

    def _extremes(self, rows: np.ndarray) -> None:
        """Further bookkeeping on finite rows, one row a sample."""

    def choose(self) -> tuple[float, float]:
        """The range, given that finite elements were seen."""
        return self.minimum, self.maximum

    def range(self) -> Range:
        """What was found so far."""
        seen = self.count > self.nonfinite
        low, high = (self.minimum, self.maximum) if seen else (0.0, 0.0)
        lo, hi = self.choose() if seen else (0.0, 0.0)
        # No range beyond the data, and none without zero.
        lo, hi = min(max(lo, low), 0.0), max(min(hi, high), 0.0)
        saturated = self.histogram.outside(lo, hi) if lo > low or hi < high else 0.0
        start, width, bins = self.histogram.coarse(_SHOWN)
        mean = min(max(self.histogram.mean(), low), high)
        return Range(lo, hi, low, high, self.count, self.nonfinite, mean, saturated, start, width, bins)

    def state(self) -> dict[str, np.ndarray]:
        """Everything needed to go on in another process, as arrays."""
        kept = {name: np.asarray(getattr(self, name)) for name in self.FIELDS}
        return kept | {"bins": self.histogram.counts, "exponent": np.asarray(self.histogram.exponent)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of ``state``."""
        for name in self.FIELDS:
            setattr(self, name, state[name].item())
        self.histogram.counts = np.array(state["bins"], np.int64)
        self.histogram.exponent = int(state["exponent"])


class MovingAverage(Observer):
    """Exponential average of each sample's extremes, weight 0.01 for the new one (torch's default, per sample here).

    Per sample rather than per batch, so the result does not depend on the batch size; a value whose elements cannot
    be shared out evenly among the samples counts as one sample a batch.
    """

    FIELDS = (*Observer.FIELDS, "low", "high")
    WEIGHT = 0.01

    def __init__(self, scheme: Scheme, samples: int, argument: str = "") -> None:
        super().__init__(scheme, samples, argument)
        self.low = self.high = math.nan

    def _extremes(self, rows: np.ndarray) -> None:
        for low, high in zip(rows.min(axis=1).tolist(), rows.max(axis=1).tolist(), strict=True):
            if math.isnan(self.low):
                self.low, self.high = low, high
            self.low += self.WEIGHT * (low - self.low)
            self.high += self.WEIGHT * (high - self.high)

    def choose(self) -> tuple[float, float]:
        return self.low, self.high


class Percentile(Observer):
    """Cuts the rarest extremes: ``percentile`` keeps 99.99 percent of the elements, ``percentile:99.9`` that share.

    Symmetric schemes cut the magnitudes; others half of the rest at each end.
    """

    BINNED = 1 << 20

    def __init__(self, scheme: Scheme, samples: int, argument: str = "") -> None:
        super().__init__(scheme, samples)
        try:
            self.kept = float(argument or 99.99) / 100
        except ValueError:
            self.kept = math.nan
        if not 0.5 <= self.kept <= 1:
            raise BadRequest(
                f"{argument!r} is no percentile", where=f"observer {scheme.observer!r}", fix="Give one from 50 to 100."
            )

    def choose(self) -> tuple[float, float]:
        if self.scheme.symmetric:
            reach = self.histogram.folded().quantile(self.kept)
            return -reach, reach
        rest = (1 - self.kept) / 2
        return self.histogram.quantile(rest), self.histogram.quantile(1 - rest)


class MeanSquaredError(Observer):
    """The range whose quantization loses the least squared error, saturation included: ``ranges.least_error``."""

    BINNED = 1 << 19

    def choose(self) -> tuple[float, float]:
        return least_error(self.histogram, self.minimum, self.maximum, self.scheme)


class Entropy(Observer):
    """The range whose quantized histogram diverges least from the original: ``ranges.least_divergence``.

    Of values away from zero the extremes where that range would lose more than they do: ``ranges.bounded``.
    """

    BINNED = 1 << 19

    def choose(self) -> tuple[float, float]:
        chosen = least_divergence(self.histogram, self.scheme)
        return bounded(chosen, self.histogram, self.minimum, self.maximum, self.scheme)


OBSERVERS: Mapping[str, type[Observer]] = {
    "minmax": Observer,
    "moving_average": MovingAverage,
    "percentile": Percentile,
    "mse": MeanSquaredError,
    "entropy": Entropy,
}


def observer(scheme: Scheme, samples: int) -> Observer:
    """The observer that ``scheme.observer`` names, for data of ``samples`` samples.

    Raises:
        BadRequest: No such observer, an argument it does not take, or per-channel scales of a value that is computed.
    """
    name, _, argument = scheme.observer.partition(":")
    if name not in OBSERVERS:
        raise BadRequest(f"there is no observer {name!r}", where="observer", fix=nearest(name, OBSERVERS))
    if scheme.granularity.kind not in (Kind.TENSOR, Kind.TOKEN):
        raise BadRequest(
            f"the range of a computed value is per_tensor, not {scheme.granularity}",
            where="granularity", fix="Use per_tensor, or weights.",
        )  # fmt: skip
    return OBSERVERS[name](scheme, samples, argument)
