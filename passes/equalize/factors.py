"""The factors of SmoothQuant, and what a choice of them costs at the outputs of the layers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from graphpress.observe.observers import observer
from graphpress.ops.dynamic_quantize_token import steps
from graphpress.passes.quantizers.affine import AFFINE, from_range
from graphpress.types import Kind, Scheme

SMALLEST = 1e-5  # below which neither maximum counts
KEPT = 1024  # rows that the search looks at


@dataclass
class SeenRows:
    """What is remembered of a value: the largest magnitude of each channel, and some rows spread over the batches.

    Attributes:
        batches: How many batches there will be.
        largest: [channels], over everything seen.
        kept: Arrays [rows, channels].
        count: Rows seen.
    """

    batches: int
    largest: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    kept: list[np.ndarray] = field(default_factory=list)
    count: int = 0

    def update(self, x: np.ndarray) -> None:
        """See one batch, channels last; rows that are not finite are left out."""
        rows = x.reshape(-1, x.shape[-1]).astype(np.float32)
        rows = rows[np.isfinite(rows).all(axis=1)]
        if not len(rows):
            return
        largest = np.abs(rows).max(axis=0)
        self.largest = np.maximum(self.largest, largest) if self.count else largest
        some = min(len(rows), -(-KEPT // max(self.batches, 1)))
        self.kept.append(rows[np.linspace(0, len(rows) - 1, some).astype(np.int64)])
        self.count += len(rows)


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
    """Squared error at the outputs of layers that are quantized, on some rows of what they read.

    Attributes:
        rows: [T, C].
        weight: [O, C], the layers stacked.
        activation, stored: Their schemes; the weight's axes are those of ``weight``.
    """

    rows: np.ndarray
    weight: np.ndarray
    activation: Scheme
    stored: Scheme

    def __post_init__(self) -> None:
        self._wanted = self.rows @ self.weight.T

    def __call__(self, factor: np.ndarray) -> float:
        """With the rows divided by ``factor`` [C] and the columns multiplied."""
        x = self._rounded((self.rows / factor).astype(np.float32))
        w = (self.weight * factor).astype(np.float32)
        params = AFFINE.fit(w, self.stored)
        w = AFFINE.dequantize(AFFINE.quantize(w, params, self.stored), params, self.stored)
        return float(np.square(x @ w.T - self._wanted, dtype=np.float64).sum())

    def _rounded(self, x: np.ndarray) -> np.ndarray:
        scheme = self.activation
        if scheme.granularity.kind is Kind.TOKEN:
            scale = np.maximum(np.abs(x).max(-1, keepdims=True) / np.float32(steps(scheme.bits)), np.float32(1e-38))
            return np.minimum(np.rint(x / scale), np.float32(scheme.qmax)) * scale
        watch = observer(scheme, len(x))
        watch.update(x, len(x))
        found = watch.range()
        params = from_range(found.lo, found.hi, scheme)
        return AFFINE.dequantize(AFFINE.quantize(x, params, scheme), params, scheme)
