"""The loop of every training: batches, steps, measurements, what is kept, and the state to go on from.

::

    method = Distill()                                                            # methods/
    roles = method.setup(Scope(model, teacher, ctx, outputs, names, loss))        # scope.py
    rest, held = split(ctx.data.bind(model), 0.125, ctx.seed)                     # samples.py
    trainer = Trainer(
        method, roles, batches=Samples(rest, size=16, seed=ctx.seed), held=tensors(held, 16), name="phase 1",
        settings=Settings(steps=300, lr=1e-4), store=TrainingState(Path("recover.state"), key),
    )
    outcome = trainer.run(ctx.progress)                                           # or trainer.step(), one at a time
    method.finalize(model, roles)                                                 # back into the graph's initializers

``batches`` may be any function from the number of a batch to the pieces of it. It and the method must be functions of
their arguments and their saved state alone: then an interrupted training, resumed from its file, ends with the same
bits as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graphpress.errors import PassError
from graphpress.interrupts import held as uninterrupted
from graphpress.passes.recover.engine.kept import Kept
from graphpress.passes.recover.engine.ranks import Ranks
from graphpress.passes.recover.engine.roles import TrainedRole
from graphpress.passes.recover.engine.samples import count, weighted
from graphpress.passes.recover.engine.schedule import Settings
from graphpress.passes.recover.engine.seeding import reproducible
from graphpress.passes.recover.engine.selection import Selection
from graphpress.passes.recover.engine.state import Saved, TrainingState, under
from graphpress.passes.recover.engine.updater import Updater
from graphpress.passes.recover.losses.base import Tensors
from graphpress.passes.recover.methods.base import Method, Update
from graphpress.runner import Progress, quiet

if TYPE_CHECKING:
    pass


class Diverged(PassError):
    """The loss or a gradient is no number any more. The parameters are again those that would be kept."""

    step: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of a training.

    Attributes:
        before: The measure before the first step; NaN where nothing is measured.
        after: The same at the end, with the parameters that are left in place.
        steps: Updates made.
        seconds: Spent, over all interrupted runs.
        best_step: After which step the kept ones were there; 0: training did not help, the parameters are as before.
        curve: (step, measure) of every measurement.
    """

    before: float
    after: float
    steps: int
    seconds: float
    best_step: int
    curve: tuple[tuple[int, float], ...] = ()

    @property
    def improved(self) -> bool:
        return self.best_step > 0


@dataclass
class Trainer:
    """One training. ``run`` does it all; ``step`` is one update.

    Attributes:
        method: What gives losses and is told of updates; its ``setup`` is done.
        roles: What it has set up.
        batches: The pieces of a batch by its number; each counts by its samples, the length of its first tensor.
        settings: Steps, rates, seed.
        held: Batches that are measured; none: nothing is, and the last parameters are kept.
        selection: How what is kept is chosen.
        store: Where the state is kept, every few seconds and at Ctrl-C.
        name: What it trains, for messages and in the file.
        ranks: The processes that train together.
    """

    method: Method
    roles: Mapping[str, TrainedRole]
    batches: Callable[[int], Sequence[Tensors]]
    settings: Settings = field(default_factory=Settings)
    held: Sequence[Tensors] = ()
    selection: Selection = field(default_factory=Selection)
    store: TrainingState | None = None
    name: str = "model"
    ranks: Ranks = field(default_factory=Ranks)

    number: int = 0  # steps made
    elapsed: float = 0.0
    measured: int = -1  # the step of the last measurement

    def __post_init__(self) -> None:
        self.updaters = {name: Updater(role, self.settings) for name, role in self.roles.items()}
        self.kept = Kept(self.method, self.updaters, self.selection)
        if self.store is not None and (saved := self.store.under_way(self.name)) is not None:
            self.restore(saved)

    # -- one step ----------------------------------------------------------------------------------------------------

    def step(self) -> dict[str, float]:
        """One update, or none and an exception; Ctrl-C waits until it is complete. The losses before it, by role.

        Raises:
            Diverged: A loss or a gradient is NaN or infinite; nothing was updated.
        """
        import torch

        with uninterrupted():
            start = time.perf_counter()
            due = tuple(self.method.cadence(self.number) or self.roles)
            update = self._update(self.number, roles=due)
            with reproducible(self._seed(self.number) + self.ranks.rank * 2**40):
                losses = self._gradients(update)
                with torch.no_grad():
                    self._apply(update)
                    self.kept.after_step()
                    self.method.after_step(update)
                for updater in self.updaters.values():
                    updater.forget()
            self._clear()
            self.number += 1
            self.elapsed = self.ranks.first(self.elapsed + time.perf_counter() - start)
        return losses

    @property
    def done(self) -> float:
        """The share of the training that is behind."""
        return self.settings.done(self.number, self.elapsed)

    def _gradients(self, update: Update) -> dict[str, float]:
        """Of all pieces of the step's batches; this process takes its share of the batches."""
        first, width = self.number * self.settings.accumulate, self.settings.accumulate * self.ranks.count
        taken = [self.batches(first * self.ranks.count + i) for i in range(width)]
        whole = sum(count(piece) for pieces in taken for piece in pieces)
        totals = dict.fromkeys(update.roles, 0.0)
        for piece in (p for i, pieces in enumerate(taken) if self.ranks.mine(i) for p in pieces):
            share = count(piece) / whole
            self._backward(piece, share, update, totals)
        for role in update.roles:
            self.updaters[role].gather(self.ranks)
        return self.ranks.total(totals)

    def _backward(self, piece: Tensors, share: float, update: Update, totals: dict[str, float]) -> None:
        """Add the gradients of a piece; those of a role's loss reach the parameters of that role alone."""
        import torch

        with self._precision(piece):
            found = self.method.losses(piece, self._update(self.number, share, update.roles))
        for role in update.roles:
            totals[role] += share * float(found[role].detach())
            if not math.isfinite(totals[role]):
                what = "the loss" if len(self.roles) == 1 else f"the loss of {role}"
                self._diverged(f"{what} is {totals[role]}", piece)
        groups: dict[int, list[str]] = {}  # roles that give one and the same loss need one backward pass
        for role in update.roles:
            groups.setdefault(id(found[role]), []).append(role)
        for i, roles in enumerate(groups.values(), 1):
            leaves = [p for role in roles for p in self.roles[role].parameters.values()]
            torch.autograd.backward(found[roles[0]] * share, inputs=leaves, retain_graph=i < len(groups))

    def _apply(self, update: Update) -> None:
        """All roles that are due, or none of them."""
        due = [self.updaters[role] for role in update.roles]
        for updater in due:
            if wrong := updater.prepare():
                self._diverged(wrong)
        for updater in due:
            updater.step(update.done)

    def _precision(self, piece: Tensors) -> AbstractContextManager[object]:
        if self.settings.precision == "float32":
            return nullcontext()
        import torch

        device = next((t.device.type for t in piece.values()), "cpu")
        return torch.autocast(device, getattr(torch, self.settings.precision))

    def _clear(self) -> None:
        for updater in self.updaters.values():
            updater.clear()

    def _diverged(self, what: str, piece: Tensors | None = None) -> None:
        self._clear()
        place = self.method.explain(piece) if piece is not None else ""
        what = f"{what} in step {self.number}" + (f"; the first such number is in {place}" if place else "")
        error = Diverged(what, where=f"recovery of {self.name}", fix="Lower lr, or clip more.")
        error.step = self.number
        raise error

    def _update(self, number: int, share: float = 1.0, roles: tuple[str, ...] = ()) -> Update:
        return Update(number, self.settings.steps, self.done, self._seed(number), roles, share, self.ranks)

    def _seed(self, step: int) -> int:
        return (self.settings.seed * 1_000_003 + step) % 2**63

    # -- all of them -------------------------------------------------------------------------------------------------

    def run(self, progress: Progress = quiet) -> Outcome:
        """Train to the end and leave what is kept in place; goes on where the file of ``store`` says.

        Raises:
            Diverged: See there. What would be kept is in the file too.
            KeyboardInterrupt: The state is in the file.
        """
        if self.store is not None and (ended := self.store.finished.get(self.name)) is not None:
            self.kept.restore(ended.tensors, ended.facts)
            self._take(ended)
            return self._end()
        limit = self.settings.seconds
        total = (self.settings.steps or 0) - self.number if limit is None else math.ceil(limit - self.elapsed)
        try:
            for _ in progress(self._work(), f"recover {self.name}", max(total, 0)):
                pass
        except KeyboardInterrupt:
            self._save(now=True)
            raise
        except Diverged:
            self.kept.put()
            self._save(now=True)
            raise
        if self._writes and self.store is not None:
            self.store.finish(self.name, Saved(self.kept.tensors(), self._facts() | self.kept.facts()))
        return self._end()

    def _end(self) -> Outcome:
        self.kept.put()
        return self.outcome()

    def outcome(self) -> Outcome:
        """How it stands."""
        losses = dict(self.kept.curve)
        before, after = losses.get(0, math.nan), losses.get(self.kept.step, math.nan)
        return Outcome(before, after, self.number, self.elapsed, self.kept.step, tuple(self.kept.curve))

    def _work(self) -> Iterator[None]:
        """All steps and measurements; yields after each step, or each second where the time is limited."""
        shown = self.elapsed
        while True:
            ended = self.done >= 1.0 or self.kept.nothing_to_win
            if self.measured != self.number and (ended or self.number % self.settings.period == 0):
                self._measure()
            if ended:
                return
            self.step()
            self._save()
            if self.settings.seconds is None:
                yield
            while self.settings.seconds is not None and shown + 1.0 <= self.elapsed:
                shown += 1.0
                yield

    def _measure(self) -> None:
        """Take the measure, and the parameters if they are to be kept."""
        start = time.perf_counter()
        with self.kept.exported():
            found = self.selection.metric() if self.selection.metric is not None else self._held()
        with uninterrupted():
            self.kept.consider(self.number, found)
            self.measured = self.number
            self.elapsed = self.ranks.first(self.elapsed + time.perf_counter() - start)

    def _held(self) -> float:
        """The method's measure of the held-back samples; NaN where it has none."""
        import torch

        update = Update(self.number, self.settings.steps, self.done, self._seed(0), ranks=self.ranks)
        with torch.no_grad(), reproducible(self._seed(0)):
            found = [self.method.measure(piece, update) for piece in self.held]
        losses = [float(x) for x in found if x is not None]
        if len(losses) < len(found) or not losses:
            return math.nan
        loss = weighted(losses, self.held)
        if not math.isfinite(loss):
            broken = next((p for p, x in zip(self.held, losses, strict=True) if not math.isfinite(x)), self.held[0])
            self._diverged(f"the loss of the held-back samples is {loss}", broken)
        return loss

    # -- state -------------------------------------------------------------------------------------------------------

    @property
    def _writes(self) -> bool:
        return self.ranks.rank == 0

    def state(self) -> Saved:
        """All that the next step depends on, but for the arguments of this trainer."""
        tensors = {f"k:{k}": t for k, t in self.kept.tensors().items()}
        for role, updater in self.updaters.items():
            tensors |= {f"p:{role}:{n}": t for n, t in updater.copy().items()}
            tensors |= {f"o:{role}:{key}": t for key, t in updater.state()}
        said = self.method.state()
        tensors |= {f"m:{k}": t for k, t in said.tensors.items()}
        return Saved(tensors, self._facts() | {"kept": self.kept.facts(), "method": said.facts})

    def restore(self, saved: Saved) -> None:
        """Go back, or on, to a state of a trainer with the same arguments."""
        for role, updater in self.updaters.items():
            with uninterrupted():
                updater.put(under(saved.tensors, f"p:{role}"))
                updater.restore(under(saved.tensors, f"o:{role}"))
        self.method.load(Saved(under(saved.tensors, "m"), saved.facts["method"]))
        self.kept.restore(under(saved.tensors, "k"), saved.facts["kept"])
        self._take(saved)

    def _facts(self) -> dict[str, object]:
        return {"number": self.number, "elapsed": self.elapsed, "measured": self.measured}

    def _take(self, saved: Saved) -> None:
        facts = saved.facts
        self.number, self.elapsed, self.measured = int(facts["number"]), float(facts["elapsed"]), int(facts["measured"])

    def _save(self, now: bool = False) -> None:
        if self._writes and self.store is not None and (now or self.store.due()):
            with uninterrupted():
                self.store.save(self.name, self.state())
