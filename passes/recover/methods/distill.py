"""``distill``: one student, made like its teacher by the losses that the pass is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from graphpress.passes.recover.engine.roles import TrainedRole
from graphpress.passes.recover.engine.scope import Scope
from graphpress.passes.recover.engine.state import Saved
from graphpress.passes.recover.engine.student import Module, look
from graphpress.passes.recover.losses.base import Seen, Tensors
from graphpress.passes.recover.methods.base import Method, Update

if TYPE_CHECKING:
    import torch


@dataclass
class Distill(Method):
    """The losses may have state: they are told what every step came to. What of them is fixed judges what is kept."""

    blocks: ClassVar[bool] = True

    def setup(self, scope: Scope) -> dict[str, TrainedRole]:
        return {"student": self.compare(scope, scope.student)}

    def compare(self, scope: Scope, student: Module) -> TrainedRole:
        """Set a module of the model, or of a copy with something added, against the teacher; the role of its names."""
        self.watch(scope, student)
        return scope.role(student)

    def watch(self, scope: Scope, student: Module) -> None:
        """Set a module against the teacher."""
        assert scope.loss is not None
        self.loss, self.judge = scope.loss, scope.loss.fixed()
        self.student, self.look = student, partial(look, student, scope.taught, scope.outputs)
        self.values = dict[str, float]()  # of this step so far, by loss

    def see(self, batch: Tensors, update: Update) -> Seen:
        """What both models make of a batch."""
        seen = self.look(batch)
        return replace(seen, done=update.done, seed=update.seed, step=update.number, total=update.total)

    def total(self, seen: Seen, update: Update) -> torch.Tensor:
        """The losses of a piece together, each noted for ``after_step``."""
        parts = self.loss.parts(seen)
        for name, part in parts.items():
            self.values[name] = self.values.get(name, 0.0) + update.share * float(part.detach())
        return self.loss.sum(parts)

    def losses(self, batch: Tensors, update: Update) -> Mapping[str, torch.Tensor]:
        return {"student": self.total(self.see(batch, update), update)}

    def after_step(self, update: Update) -> None:
        self.loss.after_step(update.ranks.total(self.values), update.number, update.total)
        self.values.clear()

    def measure(self, batch: Tensors, update: Update) -> torch.Tensor | None:
        return self.judge(self.see(batch, update))

    def state(self) -> Saved:
        return Saved(facts=self.loss.state())

    def load(self, saved: Saved) -> None:
        self.loss.load(saved.facts)

    def explain(self, batch: Tensors) -> str:
        return self.student.explain(batch)


METHOD = Distill
