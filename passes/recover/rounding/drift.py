"""What the layers before one have lost of its input, and the weight that makes up for it before it is rounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from graphpress.observe.moments import Moments, Rows

SHARES = (1.0, 0.3, 0.1, 0.03, 0.01)  # of the mean energy of an input, by which a change of the weight is held back
_ROWS = 256  # of a sample that are enough, unless a layer reads more inputs: neighbours in a picture are much alike
_ELEMENTS = 1 << 20  # of unfolded rows that are held at a time: arrays of a size that memory is kept for


@dataclass(frozen=True, eq=False)
class Drift:
    """Of the rows x that a layer reads and ``d = f - x``, f the rows of the float model; float64, about their means.

    Attributes:
        read: [groups, K, K], the mean of ``x x^T``.
        across: The same of ``d x^T``.
        lost: The same of ``d d^T``.
        mean: [groups, K], of x.
        shift: [groups, K], of d.
        count: Rows.
    """

    read: np.ndarray
    across: np.ndarray
    lost: np.ndarray
    mean: np.ndarray
    shift: np.ndarray
    count: int

    @property
    def moments(self) -> Moments:
        """Of x."""
        return Moments(self.read, self.count)

    def error(self, weight: np.ndarray, rounded: np.ndarray) -> float:
        """Mean of ``|W f - W_q x|^2``, summed over channels, where the bias takes what is off on average.

        Args:
            weight: W, [out, K].
            rounded: W_q, [out, K].
        """
        w, change = (a.astype(np.float64).reshape(len(self.read), -1, self.read.shape[1]) for a in (weight, rounded))
        change = change - w
        parts = ((w, self.lost, w, 1), (w, self.across, change, -2), (change, self.read, change, 1))
        return float(sum(n * np.einsum("gok,gok->", a @ m, b) for a, m, b, n in parts))

    def made_up(self, weight: np.ndarray, share: float) -> np.ndarray:
        """[out, K]: the weight that gives on x what ``weight`` gives on f, as well as it can, not rounded.

        ``W + W A (H + l)^-1`` of ``across`` A and ``read`` H: least ``|W f - V x|^2 + l |V - W|^2``.

        Args:
            weight: [out, K].
            share: l, as a share of the mean of H's diagonal.
        """
        groups, width = self.mean.shape
        w = weight.astype(np.float64).reshape(groups, -1, width)
        held = share * np.trace(self.read, axis1=1, axis2=2)[:, None, None] / width
        damped = self.read + np.where(held > 0, held, 1.0) * np.eye(width)
        change = np.linalg.solve(damped, np.swapaxes(w @ self.across, 1, 2))
        return (w + np.swapaxes(change, 1, 2)).reshape(weight.shape)

    def bias(self, weight: np.ndarray, rounded: np.ndarray) -> np.ndarray:
        """[out]: what has to be added to a bias so that outputs are right on average."""
        groups, width = self.mean.shape
        w, q = (a.astype(np.float64).reshape(groups, -1, width) for a in (weight, rounded))
        return (np.einsum("gok,gk->go", w, self.mean + self.shift) - np.einsum("gok,gk->go", q, self.mean)).ravel()


def best_share(weight: np.ndarray, seen: Drift, unseen: Drift) -> np.ndarray:
    """[out, K]: of the weights that make up for ``seen`` the one of least error on ``unseen``; may be ``weight``."""
    tried = [weight.astype(np.float64), *(seen.made_up(weight, share) for share in SHARES)]
    return min(tried, key=lambda made: unseen.error(weight, made))


class DriftSum:
    """A running sum of what makes a ``Drift``."""

    def __init__(self) -> None:
        self.count, self.sums = 0, list[Any]([0.0] * 5)

    def update(self, rows: Rows, x: np.ndarray, f: np.ndarray) -> None:
        """Add a batch of what the layer reads in the rounded and in the float model; no number counts as 0.

        Of samples with many more rows than inputs some are taken, by chance.
        """
        if not x.size:
            return
        taps = 1 if rows.window is None else int(np.prod(rows.window.kernel))
        step = max(1, _ELEMENTS // max(x[:1].size * taps, 1))
        for i in range(0, len(x), step):
            here, whole = (_thinned(rows(a[i : i + step]), len(x[i : i + step])) for a in (x, f))
            d = whole - here
            across = np.swapaxes(d, 1, 2)
            found = np.swapaxes(here, 1, 2) @ here, across @ here, across @ d, here.sum(1), d.sum(1)
            self.sums = [total + one for total, one in zip(self.sums, found, strict=True)]
            self.count += here.shape[1]

    def drift(self) -> Drift:
        """The means."""
        read, across, lost, mean, shift = (s / max(self.count, 1) for s in self.sums)
        pairs = ((read, mean, mean), (across, shift, mean), (lost, shift, shift))
        read, across, lost = (m - a[:, :, None] * b[:, None, :] for m, a, b in pairs)
        return Drift(read, across, lost, mean, shift, self.count)


def _thinned(rows: np.ndarray, samples: int) -> np.ndarray:
    """float64, without what is no number: of the rows [groups, rows, K] of so many samples all, or a random choice."""
    most = samples * max(_ROWS, rows.shape[2])
    if rows.shape[1] > most:  # the same of the same shape
        rows = rows[:, np.sort(np.random.default_rng(0).permutation(rows.shape[1])[:most])]
    wide = rows.astype(np.float64)
    return wide if np.isfinite(wide.sum()) else np.nan_to_num(wide, posinf=0.0, neginf=0.0)
