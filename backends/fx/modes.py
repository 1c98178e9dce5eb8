"""Operators that do something else in training: BatchNormalization and Dropout follow ``module.train()``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Switched(torch.nn.Module):
    """A function that is told whether its module trains; it has no state of its own."""

    def __init__(self, function: Callable[..., Any], attributes: dict[str, Any]) -> None:
        super().__init__()
        self.function, self.attributes = function, attributes

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs, **self.attributes, training=self.training)
