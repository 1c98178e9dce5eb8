"""What an architecture of the bench is: a small module with random weights, and inputs for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

_SPREAD = 0.1  # of what is added to gains and biases


@dataclass
class Draw:
    """Draws inputs of ``batch`` samples; the same seed gives the same."""

    batch: int
    generator: torch.Generator

    def ids(self, length: int, vocabulary: int = 256) -> Tensor:
        """[batch, length] of tokens; the lowest four are left out, since models take them for marks."""
        return torch.randint(4, vocabulary, (self.batch, length), generator=self.generator)

    def ones(self, *shape: int) -> Tensor:
        """[batch, ...] of integers: a mask that hides nothing."""
        return torch.ones((self.batch, *shape), dtype=torch.int64)

    def floats(self, *shape: int) -> Tensor:
        """[batch, ...], normal."""
        return torch.randn((self.batch, *shape), generator=self.generator)

    def steps(self) -> Tensor:
        """[batch]: time steps of a diffusion."""
        return torch.randint(0, 1000, (self.batch,), generator=self.generator)

    def whole(self, value: Tensor) -> Tensor:
        """[batch, ...]: the same for every sample."""
        return value.expand(self.batch, *value.shape).clone()


@dataclass(frozen=True)
class Architecture:
    """A module in its default configuration but for its size.

    Attributes:
        name: Of the matrix's row.
        family: Of the matrix's part: such as encoder, decoder, vision transformer.
        make: The module; drawn with a seed of its own.
        inputs: Keyword arguments of ``forward``.
        prenorm: Whether it is a transformer with a residual stream that each block normalizes before it reads it.
        ffn: Feed-forward blocks of its layers: two linear layers or three with an activation, and nothing else, between
            them. Poolers and heads may be found beside them.
    """

    name: str
    family: str
    make: Callable[[], nn.Module]
    inputs: Callable[[Draw], Mapping[str, Any]]
    prenorm: bool = False
    ffn: int = 0

    def module(self) -> nn.Module:
        """The module in evaluation mode, the same each time; gains and biases are no longer ones and zeros."""
        torch.manual_seed(0)
        made, generator = self.make().eval(), torch.Generator().manual_seed(1)
        with torch.no_grad():
            for vector in (p for p in made.parameters() if p.ndim == 1 and p.is_floating_point()):
                vector += _SPREAD * torch.randn(vector.shape, generator=generator)
        return made

    def draw(self, batch: int, seed: int) -> dict[str, Any]:
        """Keyword arguments."""
        return dict(self.inputs(Draw(batch, torch.Generator().manual_seed(seed))))


def ready() -> None:
    """To be called before a library of models is imported, which imports torchvision where that is installed.

    torchvision's wheel may be for another build of torch than the one at hand; what it declares of its operators is all
    that is needed of them here.
    """
    if find_spec("torchvision") is None or "torchvision" in sys.modules:
        return
    try:
        import_module("torchvision")
    except RuntimeError:
        operators = torch.library.Library("torchvision", "DEF")
        for op in ("nms", "qnms"):
            operators.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(operators)
        import_module("torchvision")


_KEPT: list[Any] = []  # operators go with the library that declared them


def of_transformers(kind: str, options: Mapping[str, Any]) -> Callable[[], Any]:
    """How to make a model of transformers, random weights, from options of its configuration."""

    def make() -> Any:
        ready()
        import transformers

        model = getattr(transformers, kind)
        return model(model.config_class(**options))

    return make
