"""What a loss is, what it sees, and the weighted sum of several."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import pydantic

from graphpress.errors import BadRequest, nearest

if TYPE_CHECKING:
    import torch

Tensors: TypeAlias = "Mapping[str, torch.Tensor]"
Asked: TypeAlias = Mapping[str, Mapping[str, object]]
WEIGHT = "weight"  # an option of every loss: its factor in the sum
_PACKAGE, _PARTS = "graphpress.passes.recover.losses", ("base",)


@dataclass(frozen=True)
class Seen:
    """What both models make of one batch.

    Attributes:
        batch: The inputs by name, and ``labels`` where the data has them.
        student: Values by name, with gradients.
        teacher: Values of the same names, without.
        outputs: The names that losses compare unless they are told others.
        done: The share of the training that is behind, from 0 to 1.
        seed: Another one for every step, the same in every run.
    """

    batch: Tensors
    student: Tensors
    teacher: Tensors
    outputs: tuple[str, ...]
    done: float = 0.0
    seed: int = 0

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


class Loss(Protocol):
    """A number to be made small, a mean over samples: a tensor without axes.

    ``features`` are values beside the outputs that both models have to give.
    """

    @property
    def features(self) -> tuple[str, ...]: ...

    def __call__(self, seen: Seen) -> torch.Tensor: ...


@dataclass(frozen=True)
class Weighted:
    """The sum of losses by name, each with its factor."""

    terms: Mapping[str, tuple[float, Loss]]

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for _, loss in self.terms.values() for name in loss.features))

    def __call__(self, seen: Seen) -> torch.Tensor:
        terms = [factor * loss(seen) for factor, loss in self.terms.values()]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total


def names() -> list[str]:
    """The losses there are."""
    package = importlib.import_module(_PACKAGE)
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name not in _PARTS)


def make(asked: Asked, where: str = "losses") -> Weighted:
    """The sum of what a recipe asks for: ``{kl: {temperature: 2, weight: 1}, mse: {}}``.

    Raises:
        BadRequest: No such loss or option (nearest given), a value of the wrong type, or nothing asked for.
    """
    if not asked:
        raise BadRequest("no loss is asked for", where=where, fix=f"Known: {', '.join(names())}.")
    return Weighted({name: _term(name, dict(options or {}), f"{where}: {name!r}") for name, options in asked.items()})


def _term(name: str, options: dict[str, object], where: str) -> tuple[float, Loss]:
    known = names()
    if name not in known:
        raise BadRequest("there is no such loss", where=where, fix=nearest(name, known))
    loss = importlib.import_module(f"{_PACKAGE}.{name}").LOSS
    factor = options.pop(WEIGHT, 1.0)
    if not isinstance(factor, int | float) or isinstance(factor, bool) or not 0 < factor < float("inf"):
        raise BadRequest(f"weight {factor!r} is no positive number", where=where)
    fields = [f.name for f in dataclasses.fields(loss)]
    for option in options:
        if option not in fields:
            raise BadRequest(f"it has no option {option!r}", where=where, fix=nearest(option, [*fields, WEIGHT]))
    try:
        return float(factor), pydantic.TypeAdapter(loss).validate_python(options)
    except pydantic.ValidationError as e:
        first = e.errors()[0]
        raise BadRequest(f"option {first['loc'][0]!r}: {first['msg']}, got {first['input']!r}", where=where) from e
