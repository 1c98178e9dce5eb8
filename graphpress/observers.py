"""Observers: what is remembered of the values of one tensor, and the range that each makes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from graphpress.errors import BadRequest, nearest
from graphpress.histogram import Histogram
from graphpress.scale import scale_and_zero
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
    """The range with the least expected squared error of quantizing, saturation included.

    The histogram is read as a density constant over each bin, for which the error of the scheme's own grid is
    integrated in closed form. Searched over ratios of the extremes on a geometric grid, then a finer one around the
    best; an asymmetric range has each end searched in turn, twice. (As the MSE calibration of NVIDIA's
    pytorch-quantization, with the integral in place of bin centres.)
    """

    BINNED = 1 << 20
    COARSE = 2.0 ** (-np.arange(33) / 4)  # down to 1/256
    FINE = 2.0 ** (np.arange(-7, 8) / 32)

    def choose(self) -> tuple[float, float]:
        return _search(self.minimum, self.maximum, self.scheme.symmetric, self._scan)

    def _scan(self, lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
        edges, counts = self.histogram.edges()
        return expected_error(edges, counts, lo, hi, self.scheme)


class Entropy(Observer):
    """The range with the least Kullback-Leibler divergence between the values and their quantized histogram.

    S. Migacz, "8-bit inference with TensorRT", GTC 2017; details (even groups, the bin at zero takes its neighbour's
    count, the largest of equal candidates) as ``_compute_amax_entropy`` of NVIDIA's pytorch-quantization. Symmetric
    schemes use magnitudes and 2**(bits-1) groups. Asymmetric ones use 2**bits groups over the range and search each
    end in turn, twice.
    """

    BINNED = 1 << 20

    def choose(self) -> tuple[float, float]:
        if self.scheme.symmetric:
            first, counts = self.histogram.folded().span()
            stops = np.arange(1, counts.size + 1)
            reach = self._best(counts, first, np.zeros_like(stops), stops, stops)
            return -reach[1], reach[1]
        return self._two_sided()
