"""The factors of SmoothQuant, and what a choice of them costs at the outputs of the layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from graphpress.observe.observers import observer
from graphpress.ops.dynamic_quantize_token import steps
from graphpress.passes.quantizers.affine import AFFINE, from_range
from graphpress.passes.quantizers.quantizer import QParams
from graphpress.types import Kind, Scheme

SMALLEST = 1e-5  # below which neither maximum counts
KEPT = 1024  # rows that the search looks at
PARTS = 4  # of the samples, each held out once


@dataclass
class SeenRows:
    """What is remembered of a value: the largest magnitude of each channel, and some rows spread over the batches.

    Samples fall into parts of which each is held out once: the largest of the others say nothing of its rows.

    Attributes:
        batches: How many batches there will be.
        parts: The largest below and above zero [2, channels] of each part that was seen, as magnitudes from 0.
        kept: Arrays [rows, channels].
        part: For each of ``kept`` the parts of its rows.
        count: Rows seen.
    """

    batches: int
    parts: dict[int, np.ndarray] = field(default_factory=dict)
    kept: list[np.ndarray] = field(default_factory=list)
    part: list[np.ndarray] = field(default_factory=list)
    count: int = 0
    _updates: int = 0
    _square: float = 0.0

    @property
    def loudness(self) -> float:
        """The root mean square of everything seen."""
        return float(np.sqrt(self._square / max(self.count * len(self.largest), 1)))

    @property
    def largest(self) -> np.ndarray:
        """[channels], over everything seen."""
        return np.asarray(np.max(list(self.parts.values()), axis=(0, 1)))

    def update(self, x: np.ndarray) -> None:
        """See one batch, samples first and channels last; rows that are not finite are left out."""
        rows = x.reshape(-1, x.shape[-1]).astype(np.float32)
        samples = len(x) if x.ndim > 1 and (len(x) > 1 or self.batches > 1) else len(rows)
        part = np.repeat(part_of(samples, self._updates), len(rows) // max(samples, 1))
        self._updates += 1
        if not np.isfinite(rows.sum()):  # one pass, where all are finite
            fine = np.isfinite(rows).all(axis=1)
            rows, part = rows[fine], part[fine]
        if not len(rows):
            return
        starts = [0, *np.flatnonzero(np.diff(part)) + 1]  # a part is one run of rows or two
        for p, mine in zip(part[starts], np.split(rows, starts[1:]), strict=True):
            ends = np.maximum([-mine.min(axis=0), mine.max(axis=0)], np.float32(0))
            self.parts[int(p)] = np.maximum(self.parts[int(p)], ends) if int(p) in self.parts else ends
        some = min(len(rows), -(-KEPT // max(self.batches, 1)))
        chosen = np.linspace(0, len(rows) - 1, some).astype(np.int64)
        self.kept.append(rows[chosen])
        self.part.append(part[chosen])
        self.count += len(rows)
        self._square += float(np.einsum("tc,tc->", rows, rows, dtype=np.float64))

    def held_out(self) -> Iterator[tuple[int, np.ndarray]]:
        """Each part and the kept rows of it; the last alone where there are many rows, none where there is one part."""
        rows, part = np.concatenate(self.kept), np.concatenate(self.part)
        told = sorted(p for p in self.parts if (part == p).any()) if len(self.parts) > 1 else []
        for p in told[-1:] if self.count > KEPT else told:
            yield p, rows[part == p]

    def without(self, part: int) -> tuple[np.ndarray, np.ndarray]:
        """The largest magnitudes and the kept rows of all other parts; of all where there is no other."""
        others = [found for q, found in self.parts.items() if q != part]
        rows, mask = np.concatenate(self.kept), np.concatenate(self.part) != part
        if not others or not mask.any():
            return self.largest, rows
        return np.asarray(np.max(others, axis=(0, 1))), rows[mask]

    def beyond(self, factor: np.ndarray, scheme: Scheme) -> np.ndarray:
        """[channels]: the mean square of what a row yet to come lies beyond the range of all that was seen.

        The largest of each of k parts have a Gumbel distribution, the tail of a row behind the largest of all n is
        exponential of the same scale b, and they tell b: their largest is b ln k above their mean. So a row lies more
        than t beyond the largest with a chance of exp(-t / b) / n. Held out rows show such a loss by luck only, and
        factors, which make all channels as loud as the range, multiply it. Source: Coles, "An Introduction to
        Statistical Modeling of Extreme Values", 2001, 3.1 and 4.2.

        Args:
            factor: [channels]: what rows are divided by before the range is found.
            scheme: With one scale for all.
        """
        params = grid((np.concatenate(self.kept) / factor).astype(np.float32), scheme)
        scale, zero = float(np.reshape(params.scale, -1)[0]), int(np.reshape(params.zero_point, -1)[0])
        reach = np.array([zero - scheme.qmin, scheme.qmax - zero])[:, None] * scale * factor
        ends = np.array(list(self.parts.values()), np.float64)
        top = ends.max(axis=0)
        spread = (top - ends.mean(axis=0)) / np.log(max(len(ends), 2))
        behind = np.divide(np.maximum(reach - top, 0), spread, out=np.zeros_like(top), where=spread > 0)
        return np.asarray((2 * spread**2 * np.exp(-behind)).sum(axis=0) / self.count)


def part_of(samples: int, batch: int) -> np.ndarray:
    """[samples]: the part that each of a batch falls into; neighbours together, the first of a batch elsewhere."""
    return (np.arange(samples) * PARTS // max(samples, 1) + batch) % PARTS


def factors(activation: np.ndarray, weight: np.ndarray, alpha: float) -> np.ndarray:
    """``a^alpha / w^(1 - alpha)`` (SmoothQuant eq. 4); 1 where a channel is never anything but 0 on either side.

    Args:
        activation, weight: Largest magnitudes of each channel.
    """
    alive = (activation > 0) & (weight > 0)
    a, w = (np.maximum(m.astype(np.float64), SMALLEST) for m in (activation, weight))
    return np.where(alive, a**alpha / w ** (1 - alpha), 1.0)


@dataclass
class OutputError:
    """Squared error at the outputs of layers that are quantized, on rows that chose neither factors nor ranges.

    Attributes:
        rows: [T, C]: what the range of activations is found on.
        tested: [T', C]: what the error is of.
        weight: [O, C, *kernel], the layers stacked. Of a convolution each tap counts as a product of its own: what the
            errors of neighbouring pixels have in common is left out.
        activation, stored: Their schemes; the weight's axes are those of ``weight``.
    """

    rows: np.ndarray
    tested: np.ndarray
    weight: np.ndarray
    activation: Scheme
    stored: Scheme

    def __post_init__(self) -> None:
        self._wanted = self.tested @ taps(self.weight).T

    def __call__(self, factor: np.ndarray) -> float:
        """With the rows divided by ``factor`` [C] and the columns multiplied."""
        x = self._rounded((self.rows / factor).astype(np.float32), (self.tested / factor).astype(np.float32))
        w = rounded_weight((self.weight * columns(factor, self.weight.ndim)).astype(np.float32), self.stored)
        return float(np.square(x @ taps(w).T - self._wanted, dtype=np.float64).sum())

    def _rounded(self, rows: np.ndarray, x: np.ndarray) -> np.ndarray:
        scheme = self.activation
        if scheme.granularity.kind is Kind.TOKEN:
            scale = np.maximum(np.abs(x).max(-1, keepdims=True) / np.float32(steps(scheme.bits)), np.float32(1e-38))
            return np.minimum(np.rint(x / scale), np.float32(scheme.qmax)) * scale
        params = grid(rows, scheme)
        return AFFINE.dequantize(AFFINE.quantize(x, params, scheme), params, scheme)


def taps(weight: np.ndarray) -> np.ndarray:
    """[O * taps, C] of a weight [O, C, *kernel]."""
    return np.moveaxis(weight, 1, -1).reshape(-1, weight.shape[1])


def columns(factor: np.ndarray, rank: int) -> np.ndarray:
    """Factors [C] as they stand before a weight of ``rank`` axes, [O, C, *kernel]."""
    return factor.reshape(-1, *(1,) * (rank - 2))


def rounded_weight(weight: np.ndarray, scheme: Scheme) -> np.ndarray:
    """A weight [O, C, *kernel] as it comes out of its codes."""
    params = AFFINE.fit(weight, scheme)
    return AFFINE.dequantize(AFFINE.quantize(weight, params, scheme), params, scheme)


def grid(rows: np.ndarray, scheme: Scheme) -> QParams:
    """The one scale that the scheme's observer finds for rows [T, C]."""
    watch = observer(scheme, len(rows))
    watch.update(rows, len(rows))
    found = watch.range()
    return from_range(found.lo, found.hi, scheme)
