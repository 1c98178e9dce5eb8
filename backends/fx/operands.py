"""What an operator's function wants, read from its annotations."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

Tensor: TypeAlias = torch.Tensor
Operand: TypeAlias = torch.Tensor | float  # a constant of one element comes as the number
Index: TypeAlias = torch.Tensor | int  # a number where it is one on the host or a constant of rank 0
Number: TypeAlias = torch.Tensor | int  # of one element, of any rank: a number where it is on the host or a constant
Ints: TypeAlias = Sequence[int]  # on the host; symbolic under torch.export and torch.compile
Int: TypeAlias = int
Floats: TypeAlias = Sequence[float]
Float: TypeAlias = float

FACTS = frozenset({"outputs", "in_types", "out_types", "opset", "like", "training"})
HOST = frozenset({"Ints", "Int", "Floats", "Float"})


@dataclass(frozen=True)
class Operands:
    """One function of the table.

    Attributes:
        inputs: What it wants of each positional input: the name of an alias above.
        names: The inputs' names, by which an attribute of an older opset may come.
        rest: What it wants of any further inputs; "" where it takes no more.
        keywords: Attributes it knows; None where it is torch's own function and takes none.
        facts: What the builder fills in.
        many: It returns a tuple.
    """

    inputs: tuple[str, ...]
    names: tuple[str, ...]
    rest: str
    keywords: frozenset[str]
    facts: frozenset[str]
    many: bool

    def wants(self, slot: int) -> str:
        """What it wants of an input; "" where it has none there."""
        return self.inputs[slot] if slot < len(self.inputs) else self.rest


_PLAIN = Operands((), (), "Tensor", frozenset(), frozenset(), many=False)


@functools.cache
def signature(function: Callable[..., Any]) -> Operands:
    """Read a function. torch's own have no annotations: tensors in, one tensor out."""
    if not inspect.isfunction(function) or not function.__module__.startswith("graphpress."):
        return _PLAIN
    parameters = inspect.signature(function).parameters.values()
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD or p.kind is p.POSITIONAL_ONLY]
    rest = next((_alias(p.annotation) for p in parameters if p.kind is p.VAR_POSITIONAL), "")
    keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    return Operands(
        tuple(_alias(p.annotation) for p in positional),
        tuple(p.name for p in positional),
        rest,
        frozenset(keywords - FACTS),
        frozenset(keywords & FACTS),
        many=str(function.__annotations__.get("return", "")).startswith("tuple"),
    )


def _alias(annotation: object) -> str:
    """``Ints | None`` and ``Ints`` are both ``Ints``."""
    return str(annotation).partition("|")[0].strip()
