"""Block after block, each towards what the teacher gives at its end: little memory, no gradient through the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from graphpress.passes.recover.engine.blocks import GraphBlock, blocks
from graphpress.passes.recover.engine.fisher import Fisher
from graphpress.passes.recover.engine.recovery import Recovery
from graphpress.passes.recover.engine.schedule import Settings
from graphpress.passes.recover.engine.student import Module, beside, given_by, told
from graphpress.passes.recover.losses.base import Tensors

if TYPE_CHECKING:
    import torch

Inputs = Literal["student", "teacher"]


@dataclass
class _Standing:
    """Where one batch stands: what the student and the teacher have made of it up to the current cut."""

    batch: dict[str, torch.Tensor]  # the inputs, and values that go around cuts
    student: dict[str, torch.Tensor]
    teacher: dict[str, torch.Tensor]

    def move(self, student: Module, teacher: Module, outputs: Sequence[str]) -> None:
        """Past a block."""
        import torch

        with torch.no_grad():
            given = student({**self.batch, **self.student}), teacher({**self.batch, **self.teacher})
        self.student, self.teacher = ({n: values[n] for n in outputs} for values in given)


def run(recovery: Recovery, inputs: Inputs) -> tuple[float, float]:
    """Train each block on what comes out of those before it: of the student's, already trained, or of the teacher's.

    The batches are put together once; only their order changes. At a cut the values of all of them are in memory.

    Returns:
        Loss of the whole model on the held-back samples, before and after.
    """
    scope = recovery.scope
    assert scope.before is not None
    before = recovery.whole()
    found, spread = blocks(scope.model, scope.before, scope.names)
    recovery.left |= spread
    places = [_Standing(b, {}, {}) for b in (*recovery.samples.all(), *recovery.held)]
    _look_aside(recovery, found, places)
    trained = len(places) - len(recovery.held)
    for i, block in enumerate(found):
        _one(recovery, block, _Turn(i, len(found), trained, inputs), places)
    return before, recovery.whole()


def _look_aside(recovery: Recovery, found: Sequence[GraphBlock], places: Sequence[_Standing]) -> None:
    """Put the values that go around cuts into the batches."""
    import torch

    names = tuple(dict.fromkeys(name for block in found for name in block.aside))
    recovery.around = names
    if names:
        student = recovery.part(outputs=names, features=()).student
        with torch.no_grad():
            for place in places:
                place.batch |= student(place.batch)


@dataclass(frozen=True)
class _Turn:
    """Which block it is of how many, how many of the batches are for training, and what blocks are fed."""

    index: int
    count: int
    trained: int
    inputs: Inputs

    def settings(self, whole: Settings) -> Settings:
        """For one block: another seed each, its share of the time."""
        seconds = None if whole.seconds is None else whole.seconds / self.count
        return replace(whole, seed=whole.seed + self.index, seconds=seconds)


def _one(recovery: Recovery, block: GraphBlock, turn: _Turn, places: Sequence[_Standing]) -> None:
    """Train one block, and move all batches past it."""
    known = [*([] if block.source is None else [block.source]), *block.aside]
    scope, method = recovery.part(outputs=block.outputs, inputs=known, features=()), recovery.method()
    scope.names = block.parameters
    scope.features = method.inside(scope)
    student, teacher = scope.student, scope.taught
    assert teacher is not None
    scope.names = [n for n in block.parameters if n in student.parameters]
    if scope.names:
        batches, scope.settings = (
            [_told(place, teacher, turn.inputs) for place in places],
            turn.settings(scope.settings),
        )
        if method.weighs:
            fisher = Fisher(scope, recovery.around)
            for i, (place, batch) in enumerate(zip(places, batches, strict=True)):
                batch |= fisher(place.batch, given_by(batch, block.outputs), i)
        recovery.train(
            scope, f"block {turn.index + 1} of {turn.count} ({block.name})",
            batches=_Order(batches[: turn.trained], scope.settings.seed), held=batches[turn.trained :],
        )  # fmt: skip
        if method.rewrites:
            student = scope.build(scope.model)
    for place in places:
        place.move(student, teacher, block.outputs)


def _told(place: _Standing, teacher: Module, inputs: Inputs) -> dict[str, torch.Tensor]:
    import torch

    with torch.no_grad():
        wanted = teacher({**place.batch, **place.teacher})
    read = told({**place.batch, **(place.student if inputs == "student" else place.teacher)}, wanted)
    return beside(read, place.teacher)


@dataclass(frozen=True)
class _Order:
    """The batches, each once an epoch, in another order every time."""

    batches: Sequence[Tensors]
    seed: int

    def __call__(self, step: int) -> Sequence[Tensors]:
        epoch, place = divmod(step, len(self.batches))
        return [self.batches[np.random.default_rng([self.seed, epoch]).permutation(len(self.batches))[place]]]
