"""Orthogonal matrices that learn, and a module whose constants are turned by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.keys import ROLE
from graphpress.passes.recover.engine.scope import Scope
from graphpress.passes.recover.rotations.learnable_bases import Basis, placed
from graphpress.passes.recover.rounding.learning import Substituted
from graphpress.passes.structure.channels.lanes import Lanes, varying
from graphpress.passes.structure.channels.ledger import Ledger, runs

if TYPE_CHECKING:
    import torch


def cayley(step: torch.Tensor) -> torch.Tensor:
    """(1 - A/2)^-1 (1 + A/2), orthogonal for the skew part A of a square matrix: 1 + A to first order."""
    import torch

    skew, one = (step - step.t()) / 2, torch.eye(len(step), dtype=step.dtype, device=step.device)
    return torch.linalg.solve(one - skew / 2, one + skew / 2)


class Turned:
    """One basis.

    Attributes:
        matrix: float64 [size, size], orthogonal; at first the identity.
        step: What is learned: the skew part of it is the next step, and it is 0 between steps.
    """

    def __init__(self, size: int, device: str) -> None:
        import torch

        self.matrix = torch.eye(size, dtype=torch.float64, device=device)
        self.step = torch.nn.Parameter(torch.zeros(size, size, device=device))

    def now(self) -> torch.Tensor:
        """The matrix in the type of the step, with the gradient of ``cayley`` at 0."""
        start = self.matrix.to(self.step.dtype)
        return start + start @ ((self.step - self.step.t()) / 2)

    def take(self) -> None:
        """Go the step."""
        self.matrix = self.matrix @ cayley(self.step.detach().double())
        self.step.detach().zero_()


@dataclass(frozen=True, eq=False)
class _Part:
    basis: Turned
    axes: tuple[int, ...]
    places: torch.Tensor


@dataclass(eq=False)
class TurnedConstant:
    """A constant in the bases as they are now.

    Attributes:
        name: Of the initializer.
        stored: As it stands in the model.
        parts: What turns which of its channels.
    """

    name: str
    stored: torch.Tensor
    parts: list[_Part]

    def tensor(self, hard: bool) -> torch.Tensor:
        """In the model's shape; ``hard`` makes no difference."""
        found = self.stored.float()
        for part in self.parts:
            last = tuple(range(-len(part.axes), 0))
            moved = found.movedim(part.axes, last)
            flat = moved.flatten(-len(part.axes))
            picked = flat[..., part.places]
            made = (picked.reshape(-1, len(part.basis.matrix)) @ part.basis.now()).reshape(picked.shape)
            found = flat.index_copy(-1, part.places, made).reshape(moved.shape).movedim(last, part.axes)
        return found.to(self.stored.dtype)


def substituted(model: ir.Model, bases: Sequence[Basis], turned: Sequence[Turned], scope: Scope) -> Substituted:
    """The module of a model, with its constants in the bases as they are at each call; the model is rewritten."""
    import torch

    same, ledger = (lambda array, lanes: array), Ledger()
    held = [placed(model, basis) for basis in bases]
    for holder in (h for holders in held for h in holders):
        ledger.add(holder, same, mixes=True)
    ledger.write()  # each constant turns alone, and has all the axes that turn
    found: dict[str, TurnedConstant] = {}
    for one, holders in zip(turned, held, strict=True):
        seen = set[str]()
        for holder in holders:
            value = holder.node.inputs[holder.slot]
            assert value is not None and value.name
            value.metadata_props[ROLE] = "parameter"
            stored = torch.from_numpy(np.array(edit.constant(value))).to(scope.device)
            constant = found.setdefault(value.name, TurnedConstant(value.name, stored, []))
            if value.name not in seen:
                constant.parts.append(_part(holder.lanes, one, scope.device))
            seen.add(value.name)
    module = scope.build(model)
    known = [c for c in found.values() if c.name in module.parameters]
    return Substituted(module, known, lambda _: False)


def _part(lanes: Lanes, basis: Turned, device: str) -> _Part:
    import torch

    axes = tuple(a - lanes.ndim for a in varying(lanes))
    places = runs(lanes.reshape([lanes.shape[a] for a in axes]).reshape(-1), len(basis.matrix))
    return _Part(basis, axes, torch.from_numpy(places).to(device))
