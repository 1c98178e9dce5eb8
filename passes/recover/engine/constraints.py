"""What trained parameters are held to at every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Constraint(Protocol):
    """Two moments of each step at which a constraint may act, both without gradients being recorded."""

    def before(self) -> None:
        """The gradients are there, the update is not: nothing forbidden shall enter the optimizer's state."""

    def after(self) -> None:
        """The update is done: put right what it did wrong."""


@dataclass(frozen=True, eq=False)
class Masked:
    """Elements that stay exactly 0, whatever momentum and weight decay want.

    Attributes:
        parameter: What is trained.
        free: Boolean, of its shape: False where the element stays 0.
    """

    parameter: torch.nn.Parameter
    free: torch.Tensor

    def before(self) -> None:
        if self.parameter.grad is not None:
            self.parameter.grad.masked_fill_(~self.free, 0.0)

    def after(self) -> None:
        self.parameter.masked_fill_(~self.free, 0.0)


@dataclass(frozen=True, eq=False)
class AtLeast:
    """Scales stay positive: no element falls below ``least``."""

    parameter: torch.nn.Parameter
    least: torch.Tensor

    def before(self) -> None:
        """Gradients are free."""

    def after(self) -> None:
        self.parameter.copy_(self.parameter.maximum(self.least))


@dataclass(frozen=True, eq=False)
class Within:
    """Elements stay between limits: codes of fewer bits than the type that stores them."""

    parameter: torch.nn.Parameter
    low: torch.Tensor
    high: torch.Tensor

    def before(self) -> None:
        """Gradients are free."""

    def after(self) -> None:
        self.parameter.copy_(self.parameter.clamp(self.low, self.high))
