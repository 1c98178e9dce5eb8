"""``kl``: divergence of the student's classes from the teacher's, softened (arXiv:1503.02531, sec. 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphpress.errors import BadRequest
from graphpress.passes.recover.losses.base import Loss, Seen

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Kl(Loss):
    """tau^2 KL(softmax(t / tau) || softmax(s / tau)), in nats: summed over classes, mean over all other positions.

    tau^2 keeps the size of the gradient whatever the temperature.

    Attributes:
        temperature: tau; 1 is the plain divergence.
        axis: The axis of the classes.
        on: Names of the outputs that hold logits; empty: all outputs of floats.
    """

    temperature: float = 1.0
    axis: int = -1
    on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise BadRequest(f"temperature {self.temperature} is not positive", where="loss 'kl'")

    @property
    def features(self) -> tuple[str, ...]:
        return self.on

    def __call__(self, seen: Seen) -> torch.Tensor:
        return seen.mean(self._divergence, self.on, "kl")

    def _divergence(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        q = (student / self.temperature).log_softmax(self.axis)
        p = (teacher / self.temperature).log_softmax(self.axis)
        return self.temperature**2 * (p.exp() * (p - q)).sum(self.axis).mean()


LOSS = Kl
