"""Calibration data as batches of torch tensors: the batch of a step is a function of its number and a seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from graphpress.errors import Unsupported
from graphpress.graph import half
from graphpress.observe.data import CalibrationData

if TYPE_CHECKING:
    import torch


@dataclass
class Samples:
    """Every sample once an epoch, in an order that the seed and the epoch give.

    Attributes:
        data: Bound to the model.
        size: Samples in a batch; the last of an epoch holds what is left, unless the model fixes the size.
        seed: Of the orders.
        device: Where the tensors go.
    """

    data: CalibrationData
    size: int
    seed: int = 0
    device: str = "cpu"
    _epoch: tuple[int, np.ndarray] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        exact = self.data.binding.exact if self.data.binding is not None else None
        self.size = exact or min(self.size, len(self.data))
        self._whole = exact is not None

    def __len__(self) -> int:
        """Batches in an epoch."""
        n = len(self.data)
        return max(n // self.size, 1) if self._whole else -(-n // self.size)

    def __call__(self, step: int) -> Sequence[dict[str, torch.Tensor]]:
        """The batch of a step; in pieces where the shapes of its samples differ."""
        epoch, place = divmod(step, len(self))
        if self._epoch is None or self._epoch[0] != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.data))
            self._epoch = epoch, order
        chosen = self.data.pick(self._epoch[1][place * self.size : (place + 1) * self.size])
        return tensors(chosen, self.size, self.device)

    def all(self) -> list[dict[str, torch.Tensor]]:
        """All pieces of the first epoch."""
        return [piece for step in range(len(self)) for piece in self(step)]


def tensors(data: CalibrationData, size: int, device: str = "cpu") -> list[dict[str, torch.Tensor]]:
    """Batches of data in its order, with the labels and other arrays that are no inputs of the model."""
    return [{name: tensor(array, device) for name, array in rows.items()} for rows in data.batches(size, beside=True)]


def tensor(array: np.ndarray, device: str = "cpu") -> torch.Tensor:
    """A copy of an array on a device.

    Raises:
        Unsupported: torch has no such element type.
    """
    import torch

    try:
        return torch.from_numpy(np.array(half.readable(array))).to(device)
    except TypeError as e:
        raise Unsupported(f"torch has no {array.dtype} that numpy shares", where="recover: data") from e


def count(piece: Mapping[str, torch.Tensor]) -> int:
    """How many samples a piece of a batch holds."""
    return next((len(t) for t in piece.values() if t.dim()), 1)


def weighted(losses: Sequence[float], batches: Sequence[Mapping[str, torch.Tensor]]) -> float:
    """The mean over samples of means over batches; NaN where there are none."""
    counts = [count(batch) for batch in batches]
    return sum(n * x for n, x in zip(counts, losses, strict=True)) / sum(counts) if counts else math.nan


def split(data: CalibrationData, share: float, seed: int) -> tuple[CalibrationData, CalibrationData]:
    """(to train on, held back): the second decides which parameters are kept. Too few samples are both."""
    return data.hold_back(round(len(data) * share), seed)
