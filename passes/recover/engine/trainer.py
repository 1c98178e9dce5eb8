"""Training of a rewritten model towards the one before, made of small parts: ACM, 2:4 and quantized models share it.

::

    student = build(model, ctx, Wanted(outputs, quantizers="straight-through"))   # student.py: an ir.Model as functions
    teacher = build(ctx.teacher, ctx, Wanted(outputs))                            # of named tensors
    rest, held = split(ctx.data.bind(model), 0.125, ctx.seed)                     # samples.py
    trainer = Trainer(
        see=Pair(student, teacher, outputs), loss=make({"kl": {"temperature": 2.0}, "mse": {"weight": 0.1}}),
        parameters=student.train(names), constraints=[Masked(student.parameters["w"], free)], name="phase 1",
        batches=Samples(rest, size=16, seed=ctx.seed), held=tensors(held, 16), settings=Settings(steps=300, lr=1e-4),
        store=Store(Path("recover.state"), key),
    )
    outcome = trainer.run(ctx.progress)                                           # or trainer.step(), one at a time
    student.write(model, names)                                                   # back into the graph's initializers

``see`` may be any function from a batch (named tensors) to ``Seen``, ``loss`` any from ``Seen`` to a tensor without
axes, ``batches`` any from the number of a step to the pieces of its batch. All three must be functions of their
arguments alone: then an interrupted training, resumed from its file, ends with the same bits as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from graphpress.errors import PassError
from graphpress.interrupts import held as uninterrupted
from graphpress.passes.recover.engine.constraints import Constraint
from graphpress.passes.recover.engine.schedule import Settings, optimizer, set_rate
from graphpress.passes.recover.engine.state import Saved, Store
from graphpress.passes.recover.losses.base import Loss, Seen, Tensors
from graphpress.runner import Progress, quiet

if TYPE_CHECKING:
    import torch


class Diverged(PassError):
    """The loss or a gradient is no number any more. The parameters are again the best that were measured."""

    step: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of a training.

    Attributes:
        before: Loss on the held-back samples before the first step; NaN where nothing was held back.
        after: The same at the end, with the parameters that are left in place: the best that were measured.
        steps: Updates made.
        seconds: Spent, over all interrupted runs.
        best_step: After which step the best was measured; 0: training did not help, the parameters are as before.
        curve: (step, loss) of every measurement.
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
        see: Runs student and teacher on a batch.
        loss: What is made small.
        parameters: What is trained, by name; all floats with memory of their own.
        batches: The pieces of a step's batch; each counts by its samples, the length of its first tensor.
        settings: Steps, rates, seed.
        held: Batches that decide which parameters are kept; none: the last ones are.
        constraints: What holds after every step.
        store: Where the state is kept, every few seconds and at Ctrl-C.
        name: What it trains, for messages and in the file.
        rates: Factors on the learning rate of some parameters, by name.
        explain: Says where in the model the first number that is none comes up, for a batch.
    """

    see: Callable[[Tensors], Seen]
    loss: Loss
    parameters: Mapping[str, torch.nn.Parameter]
    batches: Callable[[int], Sequence[Tensors]]
    settings: Settings = field(default_factory=Settings)
    held: Sequence[Tensors] = ()
    constraints: Sequence[Constraint] = ()
    store: Store | None = None
    name: str = "model"
    rates: Mapping[str, float] = field(default_factory=dict)
    explain: Callable[[Tensors], str] | None = None

    number: int = 0  # steps made
    elapsed: float = 0.0
    measured: int = -1  # the step of the last measurement
    best_step: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = optimizer(self.parameters.items(), self.rates, self.settings)
        self.best = self._copy()
        if self.store is not None and (saved := self.store.under_way(self.name)) is not None:
            self.restore(saved)

    # -- one step ----------------------------------------------------------------------------------------------------

    def step(self) -> float:
        """One update, or none and an exception; Ctrl-C waits until it is complete. The loss before it.

        Raises:
            Diverged: The loss or the gradient is NaN or infinite; nothing was updated.
        """
        import torch

        with uninterrupted():
            start = time.perf_counter()
            with reproducible(self._seed(self.number)):
                loss = self._gradients()
                with torch.no_grad():
                    for constraint in self.constraints:
                        constraint.before()
                    self._check_gradients()
                    set_rate(self.optimizer, self.settings.lr * self.settings.factor(self.done))
                    self.optimizer.step()
                    for constraint in self.constraints:
                        constraint.after()
            self.optimizer.zero_grad()
            self.number += 1
            self.elapsed += time.perf_counter() - start
        return loss

    @property
    def done(self) -> float:
        """The share of the training that is behind."""
        return self.settings.done(self.number, self.elapsed)

    def _gradients(self) -> float:
        pieces = self.batches(self.number)
        counts = [_samples(piece) for piece in pieces]
        total = 0.0
        for piece, count in zip(pieces, counts, strict=True):
            loss = self.loss(self._seen(piece, self.number)) * (count / sum(counts))
            total += float(loss.detach())
            if not math.isfinite(total):
                self._diverged("the loss", total, piece)
            loss.backward()
        return total

    def _check_gradients(self) -> None:
        import torch

        norm = torch.nn.utils.clip_grad_norm_(
            list(self.parameters.values()), self.settings.clip or math.inf, foreach=False
        )
        if not math.isfinite(float(norm)):
            broken = [n for n, p in self.parameters.items() if p.grad is not None and not p.grad.isfinite().all()]
            self._diverged(f"the gradient of {broken[0]!r}" if broken else "the norm of the gradient", float(norm))

    def _diverged(self, what: str, value: float, piece: Tensors | None = None) -> None:
        self.optimizer.zero_grad()
        place = self.explain(piece) if self.explain is not None and piece is not None else ""
        what = f"{what} is {value} in step {self.number}" + (f"; the first such number is in {place}" if place else "")
        error = Diverged(what, where=f"recovery of {self.name}", fix="Lower lr, or clip more.")
        error.step = self.number
        raise error

    def _seen(self, piece: Tensors, step: int) -> Seen:
        return replace(self.see(piece), done=self.done, seed=self._seed(step))

    def _seed(self, step: int) -> int:
        return (self.settings.seed * 1_000_003 + step) % 2**63

    # -- all of them -------------------------------------------------------------------------------------------------

    def run(self, progress: Progress = quiet) -> Outcome:
        """Train to the end and leave the best parameters in place; goes on where the file of ``store`` says.

        Raises:
            Diverged: See there. The best parameters are in the file too.
            KeyboardInterrupt: The state is in the file.
        """
        if self.store is not None and (ended := self.store.finished.get(self.name)) is not None:
            return self._ended(ended)
        limit = self.settings.seconds
        total = (self.settings.steps or 0) - self.number if limit is None else math.ceil(limit - self.elapsed)
        try:
            for _ in progress(self._work(), f"recover {self.name}", max(total, 0)):
                pass
        except KeyboardInterrupt:
            self._save(now=True)
            raise
        except Diverged:
            self._put(self.best)
            self._save(now=True)
            raise
        self._put(self.best)
        outcome = self.outcome()
        if self.store is not None:
            self.store.finish(self.name, Saved({f"p:{n}": t for n, t in self.best.items()}, self._facts()))
        return outcome

    def outcome(self) -> Outcome:
        """How it stands."""
        losses = dict(self.curve)
        before, after = losses.get(0, math.nan), losses.get(self.best_step, math.nan)
        return Outcome(before, after, self.number, self.elapsed, self.best_step, tuple(self.curve))

    def _work(self) -> Iterator[None]:
        """All steps and measurements; yields after each step, or each second where the time is limited."""
        shown = self.elapsed
        while True:
            ended = self.done >= 1.0 or (self.best_step == 0 and dict(self.curve).get(0) == 0.0)  # nothing to win
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
        """Take the loss on the held-back samples, and the parameters if there were none better."""
        import torch

        start = time.perf_counter()
        if not self.held:
            loss = math.nan
        else:
            with torch.no_grad(), reproducible(self._seed(0)):
                losses = [float(self.loss(self._seen(piece, 0))) for piece in self.held]
            loss = weighted(losses, self.held)
            if not math.isfinite(loss):
                broken = next((p for p, x in zip(self.held, losses, strict=True) if not math.isfinite(x)), self.held[0])
                self._diverged("the loss of the held-back samples", loss, broken)
        with uninterrupted():
            lowest = min((x for _, x in self.curve), default=math.inf)
            if not self.held or loss < lowest:
                self.best, self.best_step = self._copy(), self.number
            self.curve.append((self.number, loss))
            self.measured = self.number
            self.elapsed += time.perf_counter() - start

    # -- state -------------------------------------------------------------------------------------------------------

    def state(self) -> Saved:
        """All that the next step depends on, but for the arguments of this trainer."""
        tensors = {f"p:{n}": p.detach().clone() for n, p in self.parameters.items()}
        tensors |= {f"b:{n}": t for n, t in self.best.items()}
        for name, parameter in self.parameters.items():
            kept = self.optimizer.state.get(parameter, {})
            tensors |= {f"o:{key}:{name}": t for key, t in kept.items() if t is not None}
        return Saved(tensors, self._facts())

    def restore(self, saved: Saved) -> None:
        """Go back, or on, to a state of a trainer with the same arguments."""
        self._put({k[2:]: t for k, t in saved.tensors.items() if k.startswith("p:")})
        self.best = {n: saved.tensors[f"b:{n}"].to(p.device) for n, p in self.parameters.items()}
        self.optimizer.state.clear()
        for key, tensor in saved.tensors.items():
            if key.startswith("o:"):
                _, part, name = key.split(":", 2)
                parameter = self.parameters[name]
                kept = tensor.clone() if part == "step" else tensor.to(parameter.device, copy=True)
                self.optimizer.state[parameter][part] = kept
        self._take(saved)

    def _facts(self) -> dict[str, object]:
        curve = [(n, None if math.isnan(x) else x) for n, x in self.curve]
        return {"number": self.number, "elapsed": self.elapsed, "measured": self.measured,
                "best_step": self.best_step, "curve": curve}  # fmt: skip

    def _take(self, saved: Saved) -> None:
        facts = saved.facts
        self.number, self.elapsed = int(facts["number"]), float(facts["elapsed"])
        self.measured, self.best_step = int(facts["measured"]), int(facts["best_step"])
        self.curve = [(int(n), math.nan if x is None else float(x)) for n, x in facts["curve"]]

    def _ended(self, saved: Saved) -> Outcome:
        """What an earlier run of this training came to."""
        self._put({k[2:]: t for k, t in saved.tensors.items()})
        self.best = self._copy()
        self._take(saved)
        return self.outcome()

    def _save(self, now: bool = False) -> None:
        if self.store is not None and (now or self.store.due()):
            with uninterrupted():
                self.store.save(self.name, self.state())

    def _copy(self) -> dict[str, torch.Tensor]:
        return {n: p.detach().clone() for n, p in self.parameters.items()}

    def _put(self, tensors: Mapping[str, torch.Tensor]) -> None:
        import torch

        with torch.no_grad(), uninterrupted():
            for name, tensor in tensors.items():
                self.parameters[name].copy_(tensor)


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """What torch draws follows from ``seed``, and sums are taken in a fixed order; all as before afterwards."""
    import torch

    kept = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(kept[0], warn_only=kept[1])
            torch.utils.deterministic.fill_uninitialized_memory = filled


def _samples(piece: Tensors) -> int:
    """How many samples a piece of a batch holds."""
    return next((len(t) for t in piece.values() if t.dim()), 1)


def weighted(losses: Sequence[float], batches: Sequence[Tensors]) -> float:
    """The mean over samples of means over batches; NaN where there are none."""
    counts = [_samples(batch) for batch in batches]
    return sum(n * x for n, x in zip(counts, losses, strict=True)) / sum(counts) if counts else math.nan
