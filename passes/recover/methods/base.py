"""What a training method is: roles, a loss for each, who is updated when, and what is written into the graph.

A method is one file in this folder: a dataclass whose ``init`` fields are its options (any JSON type, checked as those
of a pass), named by the file, put down as ``METHOD``. An instance serves one training. Nothing else has to be told of
it: ``recover{method: {NAME: {option: value}}}`` finds it.

The engine (``engine.trainer``) owns the batches, seeds, progress, checkpoints, mixed precision, gradient accumulation,
several processes, and the choice of what is kept. In each step it does ::

    due = method.cadence(number) or all roles
    for piece in the pieces of the batch:                        # micro-batches, lengths that differ
        found = method.losses(piece, update)                     # {role: tensor without axes}, at least of those due
        each due role: (found[role] * update.share).backward()   # gradients reach the parameters of that role alone
    each due role: constraints, clipping, its optimizer          # nothing of any role where a gradient is no number
    method.after_step(update)                                    # EMA, clocks, rank decay, ...

and in the end ``method.finalize(model, roles)``. To be resumed to the same bits a method must compute from its
arguments, its roles' parameters, and what ``state`` gives and ``load`` takes; ``torch``'s generator is seeded anew for
each step, so what it draws needs no state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import onnx_ir as ir

from graphpress.contracts import PassReport
from graphpress.passes.recover.engine.needs import Needs
from graphpress.passes.recover.engine.ranks import Ranks
from graphpress.passes.recover.engine.roles import TrainedRole
from graphpress.passes.recover.engine.schedule import Settings
from graphpress.passes.recover.engine.scope import Scope
from graphpress.passes.recover.engine.state import Saved
from graphpress.passes.recover.losses.base import Tensors

if TYPE_CHECKING:
    import torch

Select = Literal["held", "metric", "last", "ema"]


@dataclass(frozen=True)
class Update:
    """Which update it is.

    Attributes:
        number: Updates made before it.
        total: Of the whole training; None where only its time is limited.
        done: The share of the training that is behind, from 0 to 1.
        seed: Another one for every step, the same in every run and in all processes.
        roles: Those that are updated.
        share: Of the batch's samples (of all processes) those of this piece; the shares of a step add up to 1.
        ranks: The processes that train together.
    """

    number: int
    total: int | None = None
    done: float = 0.0
    seed: int = 0
    roles: tuple[str, ...] = ()
    share: float = 1.0
    ranks: Ranks = field(default_factory=Ranks)


class Method(Needs, ABC):
    """A way to train. See the head of this file for when what is called.

    Attributes:
        teacher: Whether it needs a teacher.
        compares: Whether the option ``losses`` of ``recover`` is what it makes small (in ``scope.loss``).
        blocks: Whether it can train block by block; it then trains ``scope.student`` itself.
        at_once: Whether it can train the whole model at once.
        weighs: Whether it reads, in blocks mode, how much the teacher's outputs mind a change of a block's
            (``engine.fisher``).
        needed: Whether it is an error that a model has nothing for it; else a Skip says so.
        rewrites: Whether ``write`` changes more of the graph than parameters of ``scope.student``, so that what runs on
            behind a trained block is built anew.
        select: How what is kept is chosen unless the user says otherwise.
        selects: The ways that make sense.
    """

    teacher: ClassVar[bool] = True
    compares: ClassVar[bool] = True
    blocks: ClassVar[bool] = False
    at_once: ClassVar[bool] = True
    needed: ClassVar[bool] = True
    rewrites: ClassVar[bool] = False
    select: ClassVar[Select] = "held"
    selects: ClassVar[tuple[Select, ...]] = ("held", "metric", "last", "ema")

    def check(self, settings: Settings) -> None:
        """Refuse a schedule that cannot hold what the method does, before anything is built.

        Raises:
            BadRequest: Too few steps, or a limit that it cannot keep.
        """
        return

    @property
    def weighs(self) -> bool:
        return False

    def inside(self, scope: Scope) -> tuple[str, ...]:
        """Values within a block, beside its outputs, that the student and the teacher have to give."""
        return ()

    def usual_rate(self, steps: int | None) -> float | None:
        """The learning rate unless the user says otherwise; None: by the bits of the weights."""
        return None

    def trains(self, model: ir.Model, names: Sequence[str], report: PassReport) -> list[str]:
        """Those of the initializers that could be trained which the method does train; a Skip for others in the way."""
        return list(names)

    @abstractmethod
    def setup(self, scope: Scope) -> dict[str, TrainedRole]:
        """Build what is trained, by the name of its role (without a colon).

        ``scope.student`` is the model as a module, ``scope.taught`` the teacher; ``scope.role(module)`` is a role of a
        module's parameters with all that holds for them (zeros that stay, scales, narrow codes). A method that adds to
        the graph takes a copy of ``scope.model``, rewrites that, and asks ``scope.build`` for its module.

        Raises:
            BadRequest: The model, the data or the options do not fit.
        """

    @abstractmethod
    def losses(self, batch: Tensors, update: Update) -> Mapping[str, torch.Tensor]:
        """A mean over the samples of a piece of the batch, for each role in ``update.roles`` (others are passed over).

        The loss of one role never moves another's parameters, whether the method detaches them or not.
        """

    def cadence(self, number: int) -> Sequence[str] | None:
        """The roles that step ``number`` updates; None: all of them. Of several, all are updated from one state."""
        return None

    def after_step(self, update: Update) -> None:
        """The update is done, without gradients being recorded. ``update.number`` is the step's own."""
        return

    def measure(self, batch: Tensors, update: Update) -> torch.Tensor | None:
        """A fixed measure of what would be exported, on held-back samples, lower is better; None: it has none.

        It must not move with time: by default it decides what is kept. 0 means that nothing can be won any more.
        """
        return None

    def state(self) -> Saved:
        """Copies of all that the method itself holds and changes (no parameters of roles, no optimizers)."""
        return Saved()

    def load(self, saved: Saved) -> None:
        """Go to a state that ``state`` gave, after ``setup``."""
        return

    def write(self, model: ir.Model, roles: Mapping[str, TrainedRole]) -> None:
        """Put the exported parameters as they are into the initializers of ``model`` that have their names."""
        for role in roles.values():
            if role.export and role.module is not None:
                role.module.write(model, [n for n in role.parameters if n in model.graph.initializers])

    def finalize(self, model: ir.Model, roles: Mapping[str, TrainedRole]) -> None:
        """Put what was learned into ``model``: fold adapters, swap averages in, write initializers.

        It changes nothing of the roles or itself: with ``select: metric`` it is called on copies on the way.
        """
        self.write(model, roles)

    def explain(self, batch: Tensors) -> str:
        """Where in the model the first number that is none comes up, for a batch; or nothing."""
        return ""
