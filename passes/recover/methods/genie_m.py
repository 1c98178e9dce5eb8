"""``genie_m``: rounding and step sizes learned together, while quantization is dropped at random (arXiv:2212.04780).

As AdaRound over the layers of a block at once, with the scale of the weights beside: the codes of both neighbours of
each weight are found once, from the first scale, and stay, so that the weight is linear in its scale. Steps of
activations are learned too where they are trained (``train: all``). QDrop (arXiv:2203.05740) is in two places: each
element of a quantized activation, and of what the block reads, is the float one by chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from graphpress.errors import BadRequest
from graphpress.passes.recover.engine.constraints import AtLeast
from graphpress.passes.recover.engine.roles import TrainedRole
from graphpress.passes.recover.engine.scope import Scope
from graphpress.passes.recover.engine.student import float_of
from graphpress.passes.recover.losses.base import Tensors
from graphpress.passes.recover.methods.base import Update
from graphpress.passes.recover.rounding.by_height import ChoosesNeighbours
from graphpress.passes.recover.rounding.grids import QuantizedLayer
from graphpress.passes.recover.rounding.learned import SoftRounding

if TYPE_CHECKING:
    import torch

_LEAST = 1e-3  # of what it was: a scale never falls below that


@dataclass
class GenieM(ChoosesNeighbours):
    """See the head of this file and ``ChoosesNeighbours``. Rates of scales fall by a cosine.

    Attributes:
        scale_lr: Learning rate of the weights' scales, relative to these.
        step_lr: The same of activations.
        drop: Chance that an element stays float; 0: none does.
    """

    penalty: float = 1.0
    scale_lr: float = 1e-3
    step_lr: float = 1e-3
    drop: float = 0.5

    scales: ClassVar[bool] = True
    activations: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.drop < 1:
            raise BadRequest(f"{self.drop} is not in [0, 1)", where="recover: method 'genie_m': option 'drop'")

    @property
    def dropped(self) -> float:
        return self.drop

    def learned(self, layer: QuantizedLayer, scope: Scope) -> SoftRounding:
        return SoftRounding(layer, self.begun(layer), scope.device, steps=True)

    def roles_of(self, found: Sequence[Any], scope: Scope) -> dict[str, TrainedRole]:
        scales = {f"{one.name}: scale": one.scale for one in found}
        sizes = {name: float(s.detach().mean()) for name, s in scales.items()}
        held_to = [AtLeast(s, s.detach() * _LEAST) for s in scales.values()]
        settings = replace(self.settings(scope), lr=self.scale_lr, schedule="cosine")
        roles = super().roles_of(found, scope) | {
            "scales": TrainedRole(scales, settings, sizes, held_to, self.substituted)
        }
        steps = self.steps_role(scope, self.step_lr)
        return roles | ({"steps": steps} if steps else {})

    def losses(self, batch: Tensors, update: Update) -> Mapping[str, torch.Tensor]:
        self.chance(self.drop)
        total = self.apart(self.see(self._mixed(batch), update), partial(self.total, update=update))
        # What draws weights to their neighbours has no slope in scales and steps: one loss, one way back, serves all.
        return dict.fromkeys(update.roles, total + self.drawn(self.found, update.done))

    def _mixed(self, batch: Tensors) -> Tensors:
        """What the block reads, some of its elements as the teacher has them."""
        import torch

        floats = {n: f for n in self.substituted.inputs if (f := float_of(batch, n)) is not None}
        return {**batch, **{n: torch.where(torch.rand_like(f) < self.drop, f, batch[n]) for n, f in floats.items()}}


METHOD = GenieM
