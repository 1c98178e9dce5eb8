"""Calibration images painted by a generator, for who has none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import PassReport
from graphpress.errors import BadRequest
from graphpress.passes.recover.engine.student import Excerpt, Module, build
from graphpress.passes.recover.inputs.distilled_inputs import (
    Distilled,
    Loss,
    Painter,
    Search,
    StatisticsSource,
    distil,
)
from graphpress.passes.recover.inputs.learned import Learned
from graphpress.passes.recover.inputs.swing import Swing, swung
from graphpress.passes.recover.inputs.synthesis import Synthesis

if TYPE_CHECKING:
    import torch

_LATENTS = 256
_DECAY, _FALLS = 0.95, 40  # of the generator's rate: as often as in the paper's 4,000 steps, however many there are


@dataclass(frozen=True)
class GenieD(Synthesis):
    """Make calibration images by a generator (GENIE-D, arXiv:2212.04780, section 3.1); the graph stays as it is.

    For each batch a small generator and the latents that it paints from are trained together until the values that
    BatchNormalization reads, over the whole batch, have the mean and the standard deviation that training saw. Strided
    convolutions swing meanwhile (section 3.2). What ``Synthesis`` says holds: data that the user gives are used
    instead, and the gate judges on a part of what is made.

    Attributes:
        rate: Learning rate of the latents.
        generator_rate: That of the generator, which falls by a twentieth forty times. The released code has 0.01 (its
            names of the two rates stand crosswise): there the first steps drive the last layer's tanh to its ends, the
            norm behind it hides that, and pictures of two levels are left, on which few bits calibrate badly.
        swing: Whether strided convolutions swing.
        spans: Put the least and the largest element of each channel of a picture to the ends of what the input may be
            (``reach``, ``range``). A generator paints one-sided pictures, and a range of the input that is found on
            these would cut real ones; the released code leaves the model's input in float.
    """

    name: ClassVar[str] = "genie-d"
    samples: int = 128
    batch: int = 128
    iterations: int = 4000
    rate: float = 0.1
    generator_rate: float = 0.001
    swing: bool = True
    spans: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.generator_rate > 0:
            raise BadRequest("must be above 0", where=f"{self.where}, option 'generator_rate'")

    def distil(
        self, model: ir.Model, ctx: Context, report: PassReport, known: list[Learned],
        sources: list[StatisticsSource], batches: int,
    ) -> Distilled:  # fmt: skip
        for source in sources:
            if len(source.shape) != 4:
                what = f"it has {len(source.shape)} axes, and images have four"
                raise BadRequest(what, where=f"{self.where}, input {source.name!r}", fix="Use zeroq.")
        moved, swing = swung(model, report) if self.swing else (model, Swing({}))
        module = build(moved, ctx, Excerpt(list(dict.fromkeys(k.value for k in known))))
        search = Search(self.iterations, self.rate, self.patience, False, self.seconds or math.inf)

        def paint(
            module: Module, sources: Sequence[StatisticsSource], search: Search, generator: torch.Generator
        ) -> Painter:
            return Painted(module, sources, search, generator, swing, self.generator_rate)

        made = distil(module, sources, known, search, batches, ctx.seed, ctx.progress, paint, self.where)
        if self.spans:
            made.arrays = {s.name: _spanning(made.arrays[s.name], s) for s in sources}
        return made


class Painted(Painter):
    """A generator for each input, and its latents."""

    def __init__(
        self, module: Module, sources: Sequence[StatisticsSource], search: Search, generator: torch.Generator,
        swing: Swing, rate: float,
    ) -> None:  # fmt: skip
        import torch

        self.sources, self.swing, self.generator = sources, swing, generator
        self.latents = {
            s.name: torch.randn((s.shape[0], _LATENTS), generator=generator).requires_grad_(True) for s in sources
        }
        with torch.random.fork_rng(devices=[]):  # modules draw their first weights from the global generator
            torch.manual_seed(int(torch.randint(0, 1 << 31, (), generator=generator)))
            self.nets = {s.name: _generator(*s.shape[1:]) for s in sources}
        weights = [p for net in self.nets.values() for p in net.parameters()]
        self.adams = [
            torch.optim.Adam(list(self.latents.values()), lr=search.rate),
            torch.optim.Adam(weights, lr=rate),
        ]
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self.adams[0], patience=search.patience)
        every = max(search.iterations // _FALLS, 1)
        self.decay = torch.optim.lr_scheduler.StepLR(self.adams[1], every, _DECAY)
        self.painted: dict[str, torch.Tensor] = {}

    def inputs(self) -> dict[str, torch.Tensor]:
        self.painted = {s.name: self._image(s) for s in self.sources}
        return {**{s.name: s.in_units(self.painted[s.name]) for s in self.sources}, **self.swing.draw(self.generator)}

    def _image(self, source: StatisticsSource) -> torch.Tensor:
        """In standard deviations from the mean."""
        made: torch.Tensor = self.nets[source.name](self.latents[source.name])
        return made[:, :, : source.shape[2], : source.shape[3]]

    def own(self, loss: Loss) -> torch.Tensor | float:
        """Each image has mean 0 and standard deviation 1."""
        return sum((_normal(image) for image in self.painted.values()), start=0.0)

    def zero_grad(self) -> None:
        for adam in self.adams:
            adam.zero_grad()

    def step(self, loss: float) -> None:
        for adam in self.adams:
            adam.step()
        self.plateau.step(loss)
        self.decay.step()

    def arrays(self) -> dict[str, np.ndarray]:
        import torch

        with torch.no_grad():
            return {s.name: s.clipped(self._image(s).numpy()) for s in self.sources}


def _spanning(x: np.ndarray, source: StatisticsSource) -> np.ndarray:
    """Pictures of which each channel reaches from end to end."""
    rows = x.reshape(*x.shape[:2], -1).copy()
    picture, channel = np.ogrid[: x.shape[0], : x.shape[1]]
    for place, end in ((rows.argmin(2), source.low), (rows.argmax(2), source.high)):
        rows[picture, channel, place] = np.broadcast_to(end, (x.shape[1], 1, 1)).reshape(-1)
    return rows.reshape(x.shape)


def _normal(x: torch.Tensor) -> torch.Tensor:
    import torch

    var, mean = torch.var_mean(x, (1, 2, 3), correction=0)
    return (mean**2 + ((var + 1e-6).sqrt() - 1) ** 2).mean()


def _generator(channels: int, height: int, width: int) -> torch.nn.Module:
    """Latents [batch, 256] -> images of unit scale [batch, channels, height, width], sizes rounded up to fours."""
    from torch import nn

    rows, columns = -(-height // 4), -(-width // 4)
    return nn.Sequential(
        nn.Linear(_LATENTS, 128 * rows * columns), nn.Unflatten(1, (128, rows, columns)), nn.BatchNorm2d(128),
        nn.Upsample(scale_factor=2), nn.Conv2d(128, 64, 3, padding=1), nn.BatchNorm2d(64), nn.LeakyReLU(0.2),
        nn.Upsample(scale_factor=2), nn.Conv2d(64, channels, 3, padding=1), nn.Tanh(),
        nn.BatchNorm2d(channels, affine=False),
    )  # fmt: skip
