"""What one training is about: a model, or a block of it, its teacher there, and what of it may change."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.passes.recover.engine.constraints import AtLeast, Constraint, Masked, Within
from graphpress.passes.recover.engine.roles import TrainedRole
from graphpress.passes.recover.engine.schedule import Settings
from graphpress.passes.recover.engine.student import Excerpt, Module, build
from graphpress.passes.recover.losses.base import Weighted

# A scale is a few hundredths, a weight's update is in units of the weight: per step a scale may move by this many times
# the learning rate, relative to itself.
_SCALE_RATE = 10.0
_LEAST = 1e-3  # of what it was: a scale never falls below that


@dataclass(eq=False)
class Scope:
    """What a method is given to train.

    Attributes:
        model: Never changed by a method before ``finalize``.
        before: The model that it trains towards; None where there is none.
        ctx: Of the pass.
        outputs: Names of what losses compare by default: the outputs of the graph, or the end of the block.
        names: Initializers to train.
        loss: The option ``losses`` of the pass; None where the method does not compare.
        settings: Steps, rates, seed.
        features: Further values that the student and the teacher give.
        inputs: Names of the values that are fed; None: the inputs of the graph.
        scales: Those of ``names`` that are scales of Q/DQ.
        free: Where some of ``names`` may differ from 0.
        limits: Between which values some of ``names`` stay.
        device: Where it runs, as torch calls it.
    """

    model: ir.Model
    before: ir.Model | None
    ctx: Context
    outputs: tuple[str, ...]
    names: Sequence[str] = ()
    loss: Weighted | None = None
    settings: Settings = field(default_factory=Settings)
    features: tuple[str, ...] = ()
    inputs: Sequence[str] | None = None
    scales: Collection[str] = ()
    free: Mapping[str, np.ndarray] = field(default_factory=dict)
    limits: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    device: str = "cpu"

    @property
    def wanted(self) -> tuple[str, ...]:
        """All values that the modules give."""
        return tuple(dict.fromkeys([*self.outputs, *self.features]))

    @cached_property
    def student(self) -> Module:
        """The model as it is, between ``inputs`` and ``wanted``."""
        return self.build(self.model)

    @cached_property
    def taught(self) -> Module | None:
        """The same of the teacher; its parameters are frozen unless somebody calls ``train`` on it."""
        if self.before is None:
            return None
        return build(self.before, self.ctx, Excerpt(self.wanted, self.inputs, device=self.device))

    def build(self, model: ir.Model) -> Module:
        """The same part of another model, such as a copy with something added to it."""
        quantizers = "scales" if self.scales else "straight-through"
        return build(model, self.ctx, Excerpt(self.wanted, self.inputs, quantizers, self.device))

    def role(self, module: Module, names: Iterable[str] | None = None) -> TrainedRole:
        """Parameters of a module of the model, by default ``names``, with the rates and constraints that are theirs."""
        names = list(self.names if names is None else names)
        chosen = module.train(names)
        held_to: list[Constraint] = [Masked(chosen[n], module.kept(n, self.free[n])) for n in names if n in self.free]
        bounds = {n: [module.kept(n, a) for a in self.limits[n]] for n in names if n in self.limits}
        held_to += [Within(chosen[n], *ends) for n, ends in bounds.items()]
        held_to += [AtLeast(chosen[n], chosen[n].detach().abs() * _LEAST) for n in names if n in self.scales]
        rates = {n: _SCALE_RATE * float(chosen[n].detach().abs().mean()) for n in names if n in self.scales}
        return TrainedRole(chosen, rates=rates, constraints=held_to, module=module)
