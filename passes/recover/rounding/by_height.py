"""Methods that choose between the two neighbours of each weight (AdaRound and what came of it): what they share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from graphpress.errors import BadRequest
from graphpress.passes.recover.engine.fisher import weight_of
from graphpress.passes.recover.engine.roles import TrainedRole
from graphpress.passes.recover.engine.schedule import Settings
from graphpress.passes.recover.engine.scope import Scope
from graphpress.passes.recover.losses.base import Seen, Tensors
from graphpress.passes.recover.methods.base import Update
from graphpress.passes.recover.rounding.grids import QuantizedLayer
from graphpress.passes.recover.rounding.learned import GAMMA, ZETA, SoftRounding
from graphpress.passes.recover.rounding.learning import LearnsRounding

if TYPE_CHECKING:
    import torch

_RATE = 1e-2  # of Adam, constant, where there are steps enough
# Else a weight can get from one neighbour to the other, so far in logits, in half of the steps, and settle in the rest.
_ACROSS, _FASTEST = 2 * math.log((1 - GAMMA) / (ZETA - 1)), 0.1
_STEEP, _FLAT = 20.0, 2.0  # beta at first and in the end: it falls in a straight line behind the warm-up


@dataclass
class ChoosesNeighbours(LearnsRounding):
    """The loss is that of the pass, times the channels of the values it compares (a sum over channels, a mean over
    positions, in units of the teacher's mean square), and what draws each weight to one of its neighbours.

    Unless told otherwise the rate is 0.01, of fewer than 960 steps more: see ``usual_rate``.

    Attributes:
        observer: How scales are found at first: ``keep`` those of the graph; ``minmax`` or ``mse`` (None) of the
            weights.
        penalty: Factor of what draws to one of the neighbours.
        settle: Share of the training before that begins.
    """

    penalty: float = 0.01
    settle: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.penalty > 0 or not 0 <= self.settle < 1:
            what = f"penalty {self.penalty} has to be positive, settle {self.settle} in [0, 1)"
            raise BadRequest(what, where="recover: option 'method'")

    def learned(self, layer: QuantizedLayer, scope: Scope) -> SoftRounding:
        return SoftRounding(layer, self.begun(layer), scope.device)

    def settings(self, scope: Scope) -> Settings:
        """Of the choice."""
        return replace(scope.settings, optimizer="adam", schedule="constant", warmup=0.0, clip=None)

    def usual_rate(self, steps: int | None) -> float:
        return min(max(_RATE, 2 * _ACROSS / steps), _FASTEST) if steps else _RATE

    def roles_of(self, found: Sequence[Any], scope: Scope) -> dict[str, TrainedRole]:
        chosen = {f"{one.name}: rounding": one.logit for one in found}
        return {"student": TrainedRole(chosen, self.settings(scope), module=self.substituted)}

    def losses(self, batch: Tensors, update: Update) -> Mapping[str, torch.Tensor]:
        seen = self.see(batch, update)
        return {"student": self.apart(seen, partial(self.total, update=update)) + self.drawn(self.found, update.done)}

    def judged(self, seen: Seen) -> torch.Tensor:
        return self.apart(seen, self.judge)

    def apart(self, seen: Seen, loss: Callable[[Seen], torch.Tensor]) -> torch.Tensor:
        """How far student and teacher are from each other; by ``loss`` where no element has a weight of its own."""
        pairs = [(n, seen.student[n], seen.teacher[n]) for n in seen.outputs if n in seen.teacher]
        floats = [(n, s, t) for n, s, t in pairs if s.is_floating_point() and t.is_floating_point()]
        channels = max((s.shape[1 if s.ndim > 3 else -1] for _, s, _ in floats if s.ndim), default=1)
        weights = {n: weight_of(seen.batch, n) for n, _, _ in floats}
        if all(w is None for w in weights.values()):
            return channels * loss(seen)
        parts = []
        for name, s, t in floats:
            square = (s - t).square() if weights[name] is None else (s - t).square() * weights[name]
            parts.append(square.mean() / t.square().mean().clamp_min(1e-12))
        return channels * sum(parts[1:], start=parts[0]) / len(parts)

    def drawn(self, found: Sequence[Any], done: float) -> Any:
        """What draws weights to their neighbours: nothing at first, then more and more of those in between."""
        if done < self.settle:
            return 0.0
        beta = _FLAT + (_STEEP - _FLAT) * (1 - (done - self.settle) / (1 - self.settle))
        return self.penalty * sum(one.undecided(beta) for one in found)
