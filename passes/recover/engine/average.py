"""The exponential moving average of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Average:
    """``mean <- decay mean + (1 - decay) parameter`` after every update; it starts at the parameters.

    In the first updates the decay is smaller, (1 + n) / (10 + n) where that is less: the start is soon forgotten.

    Args:
        parameters: What is averaged, by name.
        decay: At least 0, below 1.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor], decay: float) -> None:
        self.decay, self.number = decay, 0
        self.tensors = {name: p.detach().clone() for name, p in parameters.items()}

    def update(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """One update is done."""
        import torch

        self.number += 1
        share = 1.0 - min(self.decay, (1 + self.number) / (10 + self.number))
        with torch.no_grad():
            for name, mean in self.tensors.items():
                mean.lerp_(parameters[name].detach(), share)

    def state(self) -> tuple[dict[str, torch.Tensor], int]:
        """Copies of the means, and the number of updates."""
        return {name: t.clone() for name, t in self.tensors.items()}, self.number

    def load(self, tensors: Mapping[str, torch.Tensor], number: int) -> None:
        """Go to what ``state`` gave."""
        for name, mean in self.tensors.items():
            mean.copy_(tensors[name])
        self.number = number
