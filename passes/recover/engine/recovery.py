"""One call of ``recover``: everything that both modes need, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from graphpress.passes.recover.engine.ranks import Ranks
from graphpress.passes.recover.engine.roles import TrainedRole
from graphpress.passes.recover.engine.samples import Samples, weighted
from graphpress.passes.recover.engine.scope import Scope
from graphpress.passes.recover.engine.seeding import reproducible
from graphpress.passes.recover.engine.selection import Selection
from graphpress.passes.recover.engine.state import TrainingState
from graphpress.passes.recover.engine.student import look
from graphpress.passes.recover.engine.trainer import Outcome, Trainer
from graphpress.passes.recover.losses.base import Tensors, Weighted
from graphpress.passes.recover.methods.base import Method

if TYPE_CHECKING:
    import torch


@dataclass(eq=False)
class Recovery:
    """What is trained towards what, how, and on what.

    Attributes:
        scope: The whole model; without a loss, which is made anew for each training.
        method: Makes the method of one training.
        loss: Makes its losses; None where the method does not compare.
        samples: To train on.
        held: Batches that are measured.
        selection: How what is kept is chosen.
        store: The state file.
    """

    scope: Scope
    method: Callable[[], Method]
    loss: Callable[[], Weighted] | None
    samples: Samples
    held: list[dict[str, torch.Tensor]]
    selection: Selection
    store: TrainingState | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    around: tuple[str, ...] = ()  # values that go around cuts between blocks
    left: dict[str, str] = field(default_factory=dict)  # parameters that no training reached, and why

    def part(self, **changes: Any) -> Scope:
        """The scope of one training: of the whole, or with these changes of a part; its losses are made anew."""
        return replace(self.scope, loss=None if self.loss is None else self.loss(), **changes)

    def train(
        self,
        scope: Scope,
        name: str,
        batches: Callable[[int], Sequence[Tensors]] | None = None,
        held: Sequence[Tensors] | None = None,
    ) -> Outcome:
        """Train what ``scope`` says and write it into the model, also where it fails on the way.

        Without ``batches`` and ``held``: on the samples, measured on what is held back.
        """
        method, model = self.method(), scope.model
        roles = method.setup(scope)
        trainer = Trainer(
            method, roles, batches=batches or self.samples, settings=scope.settings, name=name,
            held=self.held if held is None else held, selection=self._selection(method, roles),
            store=self.store, ranks=Ranks.here(scope.device),
        )  # fmt: skip
        try:
            outcome = trainer.run(scope.ctx.progress)
        except BaseException:
            method.write(model, roles)
            raise
        method.finalize(model, roles)
        self.outcomes.append(outcome)
        return outcome

    def _selection(self, method: Method, roles: dict[str, TrainedRole]) -> Selection:
        if self.selection.by != "metric":
            return self.selection
        return replace(self.selection, metric=partial(self._metric, method, roles))

    def _metric(self, method: Method, roles: dict[str, TrainedRole]) -> float:
        """Minus the user's metric of the model as it would come out now."""
        ctx = self.scope.ctx
        assert ctx.run is not None and ctx.evaluate is not None
        copy = self.scope.model.clone()
        method.finalize(copy, roles)
        return -ctx.evaluate(ctx.run(copy))

    def whole(self) -> float:
        """The fixed loss of the whole model on the held-back samples."""
        import torch

        scope = self.part()
        assert scope.loss is not None
        loss = scope.loss.fixed()
        with torch.no_grad(), reproducible(scope.settings.seed):
            losses = [float(loss(look(scope.student, None, scope.outputs, batch))) for batch in self.held]
        return weighted(losses, self.held)
