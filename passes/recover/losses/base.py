"""What a loss is, what it sees, and the weighted sum of several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

from graphpress import catalog
from graphpress.errors import BadRequest, nearest
from graphpress.passes.recover.engine.needs import Needs
from graphpress.typed import typed

if TYPE_CHECKING:
    import torch

Tensors: TypeAlias = "Mapping[str, torch.Tensor]"
Asked: TypeAlias = Mapping[str, Mapping[str, Any] | None]
WEIGHT = "weight"  # an option of every loss: its factor in the sum


@dataclass(frozen=True)
class Seen:
    """What both models make of one batch.

    Attributes:
        batch: The inputs by name, and beside them ``labels`` and the arrays that somebody reads, where the data has
            them.
        student: Values by name, with gradients.
        teacher: Values of the same names, without.
        outputs: The names that losses compare unless they are told others.
        done: The share of the training that is behind, from 0 to 1.
        seed: Another one for every step, the same in every run.
        step: Updates made before.
        total: Of the whole training; None where only its time is limited.
    """

    batch: Tensors
    student: Tensors
    teacher: Tensors
    outputs: tuple[str, ...]
    done: float = 0.0
    seed: int = 0
    step: int = 0
    total: int | None = None

    def pairs(self, names: Sequence[str] = ()) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(student's, teacher's) of these values, by default of all outputs that are floats."""
        chosen = [n for n in names or self.outputs if n in self.student and n in self.teacher]
        found = [(self.student[n], self.teacher[n]) for n in chosen]
        return [(s, t) for s, t in found if s.is_floating_point() and t.is_floating_point()]

    def mean(
        self, term: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], on: Sequence[str], loss: str
    ) -> torch.Tensor:
        """The mean of ``term(student, teacher)`` over the pairs of ``on``.

        Raises:
            BadRequest: There are none.
        """
        pairs = self.pairs(on)
        if not pairs:
            raise BadRequest("no output is of floats", where=f"loss {loss!r}", fix="Name values with its option 'on'.")
        terms = [term(s, t) for s, t in pairs]
        return sum(terms[1:], start=terms[0]) / len(terms)

    def array(self, name: str, loss: str) -> torch.Tensor:
        """An array of the data that is no input of the model.

        Raises:
            BadRequest: The data has none of that name.
        """
        if name not in self.batch:
            raise BadRequest(f"the data has no {name}", where=f"loss {loss!r}", fix=f"Add an array called {name!r}.")
        return self.batch[name]


class Loss(Needs, ABC):
    """A number to be made small, a mean over samples: a tensor without axes.

    A loss is one file in this folder: a dataclass whose ``init`` fields are its options (any JSON type), put down as
    ``LOSS``. Most are frozen functions of what they see. One with state of its own (a clock, a running mean) changes it
    in ``after_step`` alone, and gives it out and takes it back as JSON.

    Attributes:
        teacher: Whether it compares with a teacher.
    """

    teacher: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, seen: Seen) -> torch.Tensor: ...

    def fixed(self) -> Loss:
        """What stands for it where parameters are compared: itself, unless its target moves with time."""
        return self

    def after_step(self, value: float, step: int, total: int | None) -> None:
        """An update is done.

        Args:
            value: The loss of the step: the mean over all its samples, pieces and processes, without the weight.
            step: The number of the step, from 0.
            total: Of all steps; None where only the time is limited.
        """
        return

    def state(self) -> dict[str, Any]:
        """All that ``after_step`` changes, as JSON."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go to a state that ``state`` gave."""
        return


@dataclass(frozen=True)
class Weighted(Needs):
    """The sum of losses by name, each with its factor."""

    terms: Mapping[str, tuple[float, Loss]]

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for _, loss in self.terms.values() for name in loss.features))

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for _, loss in self.terms.values() for name in loss.reads))

    @property
    def teacher(self) -> bool:
        return any(loss.teacher for _, loss in self.terms.values())

    def parts(self, seen: Seen) -> dict[str, torch.Tensor]:
        """Every term without its factor."""
        return {name: loss(seen) for name, (_, loss) in self.terms.items()}

    def sum(self, parts: Tensors) -> torch.Tensor:
        """Terms put together."""
        terms = [self.terms[name][0] * part for name, part in parts.items()]
        return sum(terms[1:], start=terms[0])

    def __call__(self, seen: Seen) -> torch.Tensor:
        return self.sum(self.parts(seen))

    def fixed(self) -> Self:
        """The same sum of what does not move."""
        return type(self)({name: (factor, loss.fixed()) for name, (factor, loss) in self.terms.items()})

    def after_step(self, values: Mapping[str, float], step: int, total: int | None) -> None:
        """Tell each term what it came to in a step."""
        for name, value in values.items():
            self.terms[name][1].after_step(value, step, total)

    def state(self) -> dict[str, Any]:
        return {name: loss.state() for name, (_, loss) in self.terms.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        for name, said in state.items():
            self.terms[name][1].load(said)


def make(asked: Asked, where: str = "losses") -> Weighted:
    """The sum of what a recipe asks for: ``{kl: {temperature: 2, weight: 1}, mse: {}}``; made anew in each call.

    Raises:
        BadRequest: No such loss or option (nearest given), a value of the wrong type, or nothing asked for.
    """
    if not asked:
        raise BadRequest("no loss is asked for", where=where, fix=f"Known: {', '.join(catalog.losses())}.")
    return Weighted({name: _term(name, dict(options or {}), f"{where}: {name!r}") for name, options in asked.items()})


def _term(name: str, options: dict[str, Any], where: str) -> tuple[float, Loss]:
    known = catalog.losses()
    if name not in known:
        raise BadRequest("there is no such loss", where=where, fix=nearest(name, known))
    factor = options.pop(WEIGHT, 1.0)
    if not isinstance(factor, int | float) or isinstance(factor, bool) or not 0 < factor < float("inf"):
        raise BadRequest(f"weight {factor!r} is no positive number", where=where)
    made: Loss = typed(known[name], options, where, BadRequest, beside=(WEIGHT,))
    return float(factor), made
