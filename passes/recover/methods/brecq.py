"""``brecq``: each weight of a block up or down, so that what matters of its output stays close (arXiv:2102.05426).

As AdaRound, but all layers of a block at once, by the error at the block's end; each element of it counts by the
squared gradient of the teacher's log-likelihood there (the diagonal of the Fisher matrix), of each sample by itself,
squared before anything is averaged. Steps of activations, where they are trained (``train: all``), come after the
weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from graphpress.passes.recover.engine.roles import TrainedRole
from graphpress.passes.recover.engine.schedule import Settings
from graphpress.passes.recover.engine.scope import Scope
from graphpress.passes.recover.losses.base import Tensors
from graphpress.passes.recover.methods.base import Update
from graphpress.passes.recover.rounding.by_height import ChoosesNeighbours

if TYPE_CHECKING:
    import torch

_STEPS = "steps"


@dataclass
class Brecq(ChoosesNeighbours):
    """See the head of this file and ``ChoosesNeighbours``.

    Attributes:
        fisher: Whether errors count by the Fisher matrix; else all the same.
        step_lr: Learning rate of the steps of activations, relative to these.
        last: Share of the training that is for these.
    """

    fisher: bool = True
    step_lr: float = 4e-4
    last: float = 0.2

    activations: ClassVar[bool] = True
    at_once: ClassVar[bool] = False

    @property
    def weighs(self) -> bool:
        return self.fisher

    def roles_of(self, found: Sequence[Any], scope: Scope) -> dict[str, TrainedRole]:
        roles = super().roles_of(found, scope)
        self.settings_of = scope.settings
        if steps := self.steps_role(scope, self.step_lr):
            roles[_STEPS] = steps
        self.roles = list(roles)
        return roles

    def _weights(self, settings: Settings, number: int, done: float) -> float:
        """How far the choice of weights is; 1 and more: it is made."""
        share = number / settings.steps if settings.steps else done
        return share / (1 - self.last) if _STEPS in self.roles else share

    def losses(self, batch: Tensors, update: Update) -> Mapping[str, torch.Tensor]:
        done = self._weights(self.settings_of, update.number, update.done)
        self.turn = len(self.found) if done >= 1 else 0
        apart = self.apart(self.see(batch, update), partial(self.total, update=update))
        return {"student": apart + self.drawn(self.found, min(done, 1.0)), _STEPS: apart}

    def cadence(self, number: int) -> Sequence[str]:
        made = self._weights(self.settings_of, number, 0.0) >= 1
        return [_STEPS] if made else ["student"]

    def is_hard(self, one: Any) -> bool:
        return super().is_hard(one) or self.turn > 0


METHOD = Brecq
