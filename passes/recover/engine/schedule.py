"""How long training takes, how large its steps are, and which optimizer takes them."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from graphpress.errors import BadRequest

if TYPE_CHECKING:
    import torch

_RATE = "rate"  # key of a parameter group: its factor on the learning rate


@dataclass(frozen=True)
class Settings:
    """Of one training.

    Attributes:
        steps: Updates at most; None: as many as there is time for.
        seconds: Time at most; how many steps that makes, and so the result, depends on the machine.
        lr: Learning rate at its highest.
        optimizer: adamw, adam, sgd (with momentum 0.9), or sign: every element moves by the rate against its gradient.
        schedule: How the rate goes down: cosine or linear (both to 0), or constant.
        warmup: Share of the training over which the rate rises from 0.
        weight_decay: Of adamw decoupled (arXiv:1711.05101), of the others added to the gradient.
        clip: Largest norm of the gradient of all parameters of a role together; None: any.
        betas: Of adam and adamw: how much of the gradient's mean and of its square's is kept.
        accumulate: Batches whose gradients make up one update.
        precision: Of what autocast chooses for products; parameters and their updates stay float32.
        every: Steps between two measurements on the held-back samples; None: a tenth of all steps, or 25.
        seed: Of the order of the samples and of whatever a loss or an operator draws.
    """

    steps: int | None = 300
    seconds: float | None = None
    lr: float = 1e-4
    optimizer: Literal["adamw", "adam", "sgd", "sign"] = "adamw"
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.0
    clip: float | None = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    accumulate: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    every: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps is None and self.seconds is None:
            raise BadRequest("neither steps nor seconds are limited", where="recover", fix="Set one of them.")
        limited = ("steps", "seconds", "lr", "clip", "every", "accumulate")
        positive: dict[str, float | None] = {name: getattr(self, name) for name in limited}
        for name, value in positive.items():
            if value is not None and not 0 < value < math.inf:
                raise BadRequest(f"{value} is not positive", where=f"recover: option {name!r}")
        if not (0 <= self.warmup < 1 and 0 <= self.weight_decay < math.inf):
            raise BadRequest("warmup lies in [0, 1), weight_decay is not negative", where="recover")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise BadRequest(f"{self.betas} are not both in [0, 1)", where="recover: option 'betas'")

    @property
    def period(self) -> int:
        """Steps between two measurements."""
        return self.every or (25 if self.steps is None else max(self.steps // 10, 1))

    def done(self, step: int, elapsed: float) -> float:
        """The share of the training that is behind after ``step`` steps and ``elapsed`` seconds."""
        by_steps = 0.0 if self.steps is None else step / self.steps
        by_time = 0.0 if self.seconds is None else elapsed / self.seconds
        return min(max(by_steps, by_time), 1.0)

    def factor(self, done: float) -> float:
        """What the learning rate is multiplied by."""
        if done < self.warmup:
            return (done + 1e-3) / (self.warmup + 1e-3)  # the very first step is not wasted
        rest = (done - self.warmup) / (1.0 - self.warmup)
        if self.schedule == "constant":
            return 1.0
        return 1.0 - rest if self.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * rest))


def optimizer(
    parameters: Iterable[tuple[str, torch.nn.Parameter]], rates: Mapping[str, float], settings: Settings
) -> torch.optim.Optimizer:
    """One parameter group a parameter, in the given order; ``rates`` multiply the learning rate of some, by name."""
    import torch

    groups = [{"params": [p], _RATE: rates.get(name, 1.0)} for name, p in parameters]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9, weight_decay=settings.weight_decay, foreach=False)
    if settings.optimizer == "sign":
        return _signed()(groups, {"lr": settings.lr})
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, foreach=False)


@functools.cache
def _signed() -> type[torch.optim.Optimizer]:
    import torch

    class Signed(torch.optim.Optimizer):
        """Steps of one size, whatever the gradient's (arXiv:1802.04434)."""

        @torch.no_grad()
        def step(self, closure: None = None) -> None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.sub_(parameter.grad.sign(), alpha=group["lr"])

    return Signed


def set_rate(made: torch.optim.Optimizer, rate: float) -> None:
    """Let the next step be taken with this learning rate, each group's factor applied."""
    for group in made.param_groups:
        group["lr"] = rate * group[_RATE]
