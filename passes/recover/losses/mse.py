"""``mse``: squared distance of values, as a share of the teacher's mean square."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphpress.passes.recover.losses.base import Loss, Seen

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Mse(Loss):
    """mean (s - t)^2 / mean t^2 over all elements of a value, then the mean over the values.

    The division makes one factor fit values of any scale; it is by the whole value, so that no channel is favoured.

    Attributes:
        on: Names of the values, of the main graph; empty: the outputs.
    """

    on: tuple[str, ...] = ()

    @property
    def features(self) -> tuple[str, ...]:
        return self.on

    def __call__(self, seen: Seen) -> torch.Tensor:
        return seen.mean(_share, self.on, "mse")


def _share(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return (student - teacher).square().mean() / teacher.square().mean().clamp_min(1e-12)


LOSS = Mse
