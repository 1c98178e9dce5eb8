"""One recovery: everything that both modes need, and what comes of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.passes.recover.engine.constraints import AtLeast, Constraint, Masked, Within
from graphpress.passes.recover.engine.samples import Samples
from graphpress.passes.recover.engine.schedule import Settings
from graphpress.passes.recover.engine.state import Store
from graphpress.passes.recover.engine.student import Module, Pair, Wanted, build
from graphpress.passes.recover.engine.trainer import Outcome, Trainer, reproducible, weighted
from graphpress.passes.recover.losses.base import Weighted

if TYPE_CHECKING:
    import torch

# A scale is a few hundredths, a weight's update is in units of the weight: per step a scale may move by this many times
# the learning rate, relative to itself.
_SCALE_RATE = 10.0
_LEAST = 1e-3  # of what it was: a scale never falls below that


@dataclass(eq=False)
class Job:
    """What is trained towards what, on what.

    Attributes:
        model: Changed in place, initializers only.
        teacher: The model before; None where no loss needs it.
        names: Initializers to train.
        scales: Those of them that are scales.
        free: Where some of them may differ from 0.
        limits: Between which values some of them stay.
        samples: To train on.
        held: Batches that decide what is kept.
        device: Where it runs, as torch calls it.
    """

    model: ir.Model
    teacher: ir.Model | None
    ctx: Context
    names: Sequence[str]
    scales: Collection[str]
    free: Mapping[str, np.ndarray]
    limits: Mapping[str, tuple[np.ndarray, np.ndarray]]
    loss: Weighted
    settings: Settings
    samples: Samples
    held: list[dict[str, torch.Tensor]]
    store: Store | None = None
    device: str = "cpu"
    outcomes: list[Outcome] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)  # parameters that no training reached, and why

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(v.name or "" for v in self.model.graph.outputs)

    def student(self, outputs: Sequence[str], inputs: Sequence[str] | None = None) -> Module:
        """A part of the model."""
        quantizers = "learnable" if self.scales else "straight-through"
        return build(self.model, self.ctx, Wanted(outputs, inputs, quantizers, self.device))

    def taught(self, outputs: Sequence[str], inputs: Sequence[str] | None = None) -> Module | None:
        """A part of the teacher."""
        wanted = Wanted(outputs, inputs, device=self.device)
        return None if self.teacher is None else build(self.teacher, self.ctx, wanted)

    def trainer(self, student: Module, names: Sequence[str], **arguments: object) -> Trainer:
        """A trainer of some parameters of a student, with what holds for them."""
        chosen = student.train(names)
        held_to: list[Constraint] = [Masked(chosen[n], student.kept(n, self.free[n])) for n in names if n in self.free]
        bounds = {n: [student.kept(n, a) for a in self.limits[n]] for n in names if n in self.limits}
        held_to += [Within(chosen[n], *ends) for n, ends in bounds.items()]
        held_to += [AtLeast(chosen[n], chosen[n].detach().abs() * _LEAST) for n in names if n in self.scales]
        rates = {n: _SCALE_RATE * float(chosen[n].detach().abs().mean()) for n in names if n in self.scales}
        fixed = {"loss": self.loss, "settings": self.settings, "store": self.store, "explain": student.explain}
        return Trainer(parameters=chosen, constraints=held_to, rates=rates, **(fixed | arguments))  # type: ignore[arg-type]

    def train(self, trainer: Trainer, student: Module) -> Outcome:
        """Run it and put what is best into the model, also where it fails on the way."""
        try:
            outcome = trainer.run(self.ctx.progress)
        finally:
            student.write(self.model, trainer.parameters)
        self.outcomes.append(outcome)
        return outcome

    def whole(self) -> float:
        """The loss of the whole model on the held-back samples."""
        import torch

        pair = Pair(self.student([*self.outputs, *self.loss.features]), None, self.outputs)
        with torch.no_grad(), reproducible(self.settings.seed):
            losses = [float(self.loss(pair(batch))) for batch in self.held]
        return weighted(losses, self.held)
