"""Block after block, each towards what the teacher gives at its end: little memory, no gradient through the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from graphpress.passes.recover.engine.blocks import Block, blocks
from graphpress.passes.recover.engine.job import Job
from graphpress.passes.recover.engine.schedule import Settings
from graphpress.passes.recover.engine.student import Module, Pair, told
from graphpress.passes.recover.losses.base import Tensors

if TYPE_CHECKING:
    import torch

Inputs = Literal["student", "teacher"]


@dataclass
class _Place:
    """Where one batch stands: what the student and the teacher have made of it up to the current cut."""

    batch: dict[str, torch.Tensor]  # the inputs, and values that go around cuts
    student: dict[str, torch.Tensor]
    teacher: dict[str, torch.Tensor]

    def move(self, student: Module, teacher: Module) -> None:
        """Past a block."""
        import torch

        with torch.no_grad():
            self.student = student({**self.batch, **self.student})
            self.teacher = teacher({**self.batch, **self.teacher})


def run(job: Job, inputs: Inputs) -> tuple[float, float]:
    """Train each block on what comes out of those before it: of the student's, already trained, or of the teacher's.

    The batches are put together once; only their order changes. At a cut the values of all of them are in memory.

    Returns:
        Loss of the whole model on the held-back samples, before and after.
    """
    assert job.teacher is not None
    before = job.whole()
    found, spread = blocks(job.model, job.teacher, job.names)
    job.left |= spread
    places = [_Place(b, {}, {}) for b in (*job.samples.all(), *job.held)]
    _look_aside(job, found, places)
    trained = len(places) - len(job.held)
    for i, block in enumerate(found):
        _one(job, block, _Turn(i, len(found), trained, inputs), places)
    return before, job.whole()


def _look_aside(job: Job, found: Sequence[Block], places: Sequence[_Place]) -> None:
    """Put the values that go around cuts into the batches."""
    import torch

    names = list(dict.fromkeys(name for block in found for name in block.aside))
    if names:
        student = job.student(names)
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


def _one(job: Job, block: Block, turn: _Turn, places: Sequence[_Place]) -> None:
    """Train one block, and move all batches past it."""
    known = [*([] if block.source is None else [block.source]), *block.aside]
    student, teacher = job.student(block.outputs, known), job.taught(block.outputs, known)
    assert teacher is not None
    names = [n for n in block.parameters if n in student.parameters]
    if names:
        batches, settings = [_told(place, teacher, turn.inputs) for place in places], turn.settings(job.settings)
        trainer = job.trainer(
            student, names, see=Pair(student, None, block.outputs), held=batches[turn.trained :], settings=settings,
            batches=_Order(batches[: turn.trained], settings.seed),
            name=f"block {turn.index + 1} of {turn.count} ({block.name})",
        )  # fmt: skip
        job.train(trainer, student)
    for place in places:
        place.move(student, teacher)


def _told(place: _Place, teacher: Module, inputs: Inputs) -> dict[str, torch.Tensor]:
    import torch

    with torch.no_grad():
        wanted = teacher({**place.batch, **place.teacher})
    return told({**place.batch, **(place.student if inputs == "student" else place.teacher)}, wanted)


@dataclass(frozen=True)
class _Order:
    """The batches, each once an epoch, in another order every time."""

    batches: Sequence[Tensors]
    seed: int

    def __call__(self, step: int) -> Sequence[Tensors]:
        epoch, place = divmod(step, len(self.batches))
        return [self.batches[np.random.default_rng([self.seed, epoch]).permutation(len(self.batches))[place]]]
