"""Inputs made from what BatchNormalization has learned: moved until the graph's values have those statistics.

ZeroQ, arXiv:2001.00281, section 3.1. Only the inputs are trained, or what paints them; the graph stays as it is, in
evaluation mode.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from graphpress.errors import BadRequest
from graphpress.passes.recover.engine.student import Module
from graphpress.passes.recover.inputs.learned import Learned
from graphpress.runner import Progress

if TYPE_CHECKING:
    import torch

_EPSILON = 1e-6  # under each square root, as in the released code: no slope of infinity where a channel is constant
_LEAST_RATE = 1e-4


@dataclass(frozen=True, eq=False)
class StatisticsSource:
    """One input of the graph and what its samples look like.

    Attributes:
        name: The input.
        shape: Of one batch.
        mean: Of its elements; of one element, or one a channel, in a shape that broadcasts to ``shape``.
        std: Likewise, above 0.
        low: Smallest value that an element may have; likewise.
        high: Largest one.
    """

    name: str
    shape: tuple[int, ...]
    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def in_units(self, z: torch.Tensor) -> torch.Tensor:
        """The input, of standard deviations from its mean."""
        import torch

        return z * torch.from_numpy(self.std) + torch.from_numpy(self.mean)

    def clipped(self, z: np.ndarray) -> np.ndarray:
        """The same within the ends."""
        return np.clip(z * self.std + self.mean, self.low, self.high)


@dataclass(frozen=True)
class Search:
    """How inputs are looked for.

    Attributes:
        iterations: Steps of Adam for each batch.
        rate: Its learning rate, in standard deviations of the input.
        patience: Steps without a better loss after which the rate falls to a tenth, down to 1e-4.
        by_image: Every sample has to have the statistics, not just all of a batch together.
        seconds: Time for all batches together; inf: no limit.
    """

    iterations: int
    rate: float
    patience: int
    by_image: bool
    seconds: float = math.inf


@dataclass
class Distilled:
    """What came out.

    Attributes:
        arrays: By input, samples first, float32.
        first: Loss of the noise, mean over batches.
        last: Loss of what was made of it.
        steps: Iterations over all batches.
    """

    arrays: dict[str, np.ndarray]
    first: float = 0.0
    last: float = 0.0
    steps: int = 0


class Painter(ABC):
    """One batch of inputs on its way."""

    @abstractmethod
    def inputs(self) -> dict[str, torch.Tensor]:
        """What the module reads, in the units of the inputs, with gradients to what is trained."""

    @abstractmethod
    def own(self, loss: Loss) -> torch.Tensor | float:
        """What the inputs that were given last add to the loss themselves."""

    @abstractmethod
    def zero_grad(self) -> None:
        """Forget the gradients."""

    @abstractmethod
    def step(self, loss: float) -> None:
        """Go on, once the gradients of a loss are there."""

    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """Every input as it is now, float32."""


Paint: TypeAlias = "Callable[[Module, Sequence[StatisticsSource], Search, torch.Generator], Painter]"


def distil(
    module: Module, sources: Sequence[StatisticsSource], known: Sequence[Learned], search: Search, batches: int,
    seed: int, progress: Progress, paint: Paint, where: str,
) -> Distilled:  # fmt: skip
    """``batches`` batches of inputs, each found on its own.

    The loss is ZeroQ's: squared distances of mean and standard deviation from those learned, summed over channels and
    values, and those of the input itself in units of its own standard deviation.

    Args:
        module: Gives the values of ``known`` from inputs; differentiable with respect to these.
        sources: Every input of the graph; those that ``module`` does not read stay noise.
        known: What to reach.
        search: How.
        batches: How many.
        seed: Of the noise.
        progress: Shows the steps.
        paint: Makes the painter of a batch.
        where: Comes first in a message.

    Raises:
        BadRequest: The loss is not finite; names what made it so.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    deadline = time.monotonic() + search.seconds
    made: list[dict[str, np.ndarray]] = []
    losses: list[tuple[float, float]] = []
    steps = iter(progress(range(batches * search.iterations), "distilling inputs", batches * search.iterations))
    result = Distilled({})
    for i in range(batches):
        state = _Batch(module, paint(module, sources, search, generator), Loss.of(known, search.by_image), where)
        until = time.monotonic() + (deadline - time.monotonic()) / (batches - i)
        done = 0
        while done < search.iterations and (done == 0 or time.monotonic() < until):
            state.step(done)
            next(steps, None)
            done += 1
        made.append(state.painter.arrays())
        losses.append((state.first, state.value()))
        result.steps += done
    result.arrays = {s.name: np.concatenate([m[s.name] for m in made]) for s in sources}
    result.first, result.last = (float(np.mean(part)) for part in zip(*losses, strict=True))
    return result


class _Batch:
    """A painter that is led by the loss."""

    def __init__(self, module: Module, painter: Painter, target: Loss, where: str) -> None:
        self.module, self.painter, self.target, self.where = module, painter, target, where
        self.first = math.nan

    def step(self, number: int) -> None:
        self.painter.zero_grad()
        loss = self._loss()
        value = loss.item()
        if not math.isfinite(value):
            raise BadRequest(
                f"the distance from the learned statistics is {value} at iteration {number}",
                where=f"{self.where}, {self.module.explain(self.painter.inputs()) or 'the loss'}",
                fix="Give the range that inputs have, or a lower rate.",
            )
        loss.backward()
        self.painter.step(value)
        self.first = value if number == 0 else self.first

    def value(self) -> float:
        import torch

        with torch.no_grad():
            return self._loss().item()

    def _loss(self) -> torch.Tensor:
        given = self.painter.inputs()
        return self.painter.own(self.target) + self.target(self.module(given))


class Pixels(Painter):
    """The elements themselves are trained (ZeroQ): z, in standard deviations from the mean of its input, for every one.

    Noise from the standard normal distribution at first; Adam, whose rate falls where the loss does not.
    """

    def __init__(
        self, module: Module, sources: Sequence[StatisticsSource], search: Search, generator: torch.Generator
    ) -> None:
        import torch

        self.module, self.sources = module, sources
        self.z = {s.name: torch.randn(s.shape, generator=generator) for s in sources}
        self.bounds = {s.name: [torch.from_numpy((v - s.mean) / s.std) for v in (s.low, s.high)] for s in sources}
        self._confine()
        trained = [self.z[name].requires_grad_(True) for name in module.inputs]
        self.adam = torch.optim.Adam(trained, lr=search.rate)
        self.schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.adam, patience=search.patience, min_lr=_LEAST_RATE
        )

    def inputs(self) -> dict[str, torch.Tensor]:
        return {s.name: s.in_units(self.z[s.name]) for s in self.sources if s.name in self.module.inputs}

    def own(self, loss: Loss) -> torch.Tensor | float:
        return sum((loss.normal(self.z[name]) for name in self.module.inputs), start=0.0)

    def zero_grad(self) -> None:
        self.adam.zero_grad()

    def step(self, loss: float) -> None:
        self.adam.step()
        self._confine()
        self.schedule.step(loss)

    def _confine(self) -> None:
        import torch

        with torch.no_grad():
            for name, (low, high) in self.bounds.items():
                torch.clamp_(self.z[name], low, high)  # the steps that follow go along the border

    def arrays(self) -> dict[str, np.ndarray]:
        return {s.name: s.clipped(self.z[s.name].detach().numpy()) for s in self.sources}


@dataclass(frozen=True, eq=False)
class Loss:
    """Distance of values from their learned statistics."""

    known: Sequence[tuple[str, torch.Tensor, torch.Tensor]]
    by_image: bool

    @classmethod
    def of(cls, known: Sequence[Learned], by_image: bool) -> Loss:
        import torch

        return cls(
            [(k.value, torch.tensor(k.mean).float(), torch.tensor(k.std**2 + _EPSILON).sqrt().float()) for k in known],
            by_image,
        )

    def __call__(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return sum((self._distance(values[name], mean, std) for name, mean, std in self.known), start=0.0)

    def normal(self, z: torch.Tensor) -> torch.Tensor:
        """The distance of an input from mean 0 and standard deviation 1 in each channel."""
        return self._distance(z, 0.0, 1.0)

    def _distance(self, x: torch.Tensor, mean: torch.Tensor | float, std: torch.Tensor | float) -> torch.Tensor:
        import torch

        positions = range(2, x.ndim)
        # One position has no standard deviation: over the batch then.
        alone = self.by_image and math.prod(x.shape[2:]) > 1
        var, seen = torch.var_mean(x, tuple(positions) if alone else (0, *positions), correction=0)
        return ((seen - mean) ** 2 + ((var + _EPSILON).sqrt() - std) ** 2).sum(-1).mean()
