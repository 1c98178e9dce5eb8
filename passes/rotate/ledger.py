"""Changes of constants, collected first and then applied together: float64 throughout, rounded once at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.keys import SPARSITY
from graphpress.passes.structure.channels.carry import Weight
from graphpress.passes.structure.channels.place import Place

_LARGE = 1 << 24  # elements; more than that are not held in float64 at once where they can be taken in parts
Change: TypeAlias = Callable[[np.ndarray], np.ndarray]  # of float64 [..., channels], channels last


@dataclass(frozen=True, eq=False)
class _Entry:
    axis: int
    width: int
    change: Change


@dataclass(eq=False)
class Ledger:
    """What is to become of which constants.

    Attributes:
        entries: By node and input, in the order of application.
        untied: Constants that were copied because others read them unchanged.
    """

    entries: dict[tuple[ir.Node, int], list[_Entry]] = field(default_factory=dict)
    untied: int = 0

    def add(self, node: ir.Node, slot: int, axis: int, width: int, change: Change, *, mixes: bool = True) -> None:
        """Apply ``change`` along ``axis`` of the constant at an input.

        Args:
            node: Who reads the constant.
            slot: At which input.
            axis: Negative: counted from the end, and the constant is broadcast along it if it is of size 1 there.
            width: Size of that axis.
            change: Of float64 [..., width]; the same object for constants that change in the same way.
            mixes: Whether it mixes channels, which destroys a pattern of zeros.

        Raises:
            BadRequest: The weight is pruned, and the change would fill its zeros.
        """
        if mixes and SPARSITY in node.metadata_props:
            raise BadRequest(
                f"its weight is pruned {node.metadata_props[SPARSITY]}, and a change of basis would fill the zeros",
                where=f"node {node.name!r}",
                fix="Rotate first and prune then.",
            )
        self.entries.setdefault((node, slot), []).append(_Entry(axis, width, change))

    def change(self, weight: Weight, change: Change, *, mixes: bool = True) -> None:
        """Apply ``change`` to the channels of a writer or reader, and to a writer's bias."""
        tensor = edit.constant_tensor(weight.node.inputs[weight.slot])
        assert tensor is not None
        width = weight.place.stop if weight.axis < 0 else tensor.shape.numpy()[weight.axis]
        self.add(weight.node, weight.slot, weight.axis, width, change, mixes=mixes)
        if weight.bias is not None:
            self.add(weight.node, weight.bias, -1, width, change, mixes=mixes)

    def write(self) -> int:
        """Apply everything; returns how many constants changed. The ledger is empty then."""
        done: set[tuple[ir.Node, int]] = set()
        count = 0
        for (node, slot), entries in self.entries.items():
            if (node, slot) in done:
                continue
            value = node.inputs[slot]
            assert value is not None
            uses = [(u.node, u.idx) for u in value.uses()]
            together = value.is_initializer() and all(_alike(self.entries.get(use, []), entries) for use in uses)
            new = _applied(value, entries)
            if together:
                edit.overwrite(value, new)
                done.update(uses)
            else:
                self.untied += len(uses) > 1
                edit.set_constant(node, slot, new, "turned")
            count += 1
        self.entries.clear()
        return count


def _alike(a: list[_Entry], b: list[_Entry]) -> bool:
    return [(e.axis, e.change) for e in a] == [(e.axis, e.change) for e in b]


def _applied(value: ir.Value, entries: list[_Entry]) -> np.ndarray:
    stored = edit.constant(value)
    assert stored is not None
    axes = {e.axis for e in entries}
    if stored.size <= _LARGE or len(axes) > 1 or stored.ndim < 2 or min(axes) < 0:
        return np.ascontiguousarray(_in_float64(stored, entries)).astype(stored.dtype)
    new, across = np.empty(stored.shape, stored.dtype), int(0 in axes)  # a table of embeddings: some rows at a time
    step = max(_LARGE * stored.shape[across] // stored.size, 1)
    for start in range(0, stored.shape[across], step):
        part = (slice(None),) * across + (slice(start, start + step),)
        new[part] = _in_float64(stored[part], entries)
    return new


def _in_float64(stored: np.ndarray, entries: list[_Entry]) -> np.ndarray:
    wide = stored.astype(np.float64)
    for entry in entries:
        wide = wide.reshape((1,) * max(-entry.axis - wide.ndim, 0) + wide.shape)
        if entry.axis < 0 and wide.shape[entry.axis] == 1 != entry.width:
            wide = np.repeat(wide, entry.width, entry.axis)
        wide = np.moveaxis(entry.change(np.moveaxis(wide, entry.axis, -1)), -1, entry.axis)
    return wide


@dataclass(frozen=True, eq=False)
class Turn:
    """The runs of a place times a matrix: ``x M`` for each run ``x``.

    Equal where matrix (the object) and place are: constants that turn in the same way may stay shared.
    """

    matrix: np.ndarray
    start: int
    stop: int

    def __call__(self, array: np.ndarray) -> np.ndarray:
        part = array[..., self.start : self.stop]
        turned = (part.reshape(-1, len(self.matrix)) @ self.matrix).reshape(part.shape)
        return np.concatenate([array[..., : self.start], turned, array[..., self.stop :]], -1)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Turn) or other.matrix is not self.matrix:
            return False
        return (self.start, self.stop) == (other.start, other.stop)

    def __hash__(self) -> int:
        return hash((id(self.matrix), self.start, self.stop))


def turn(matrix: np.ndarray, place: Place) -> Turn:
    """Turn the runs of a place."""
    return Turn(matrix, place.start, place.stop)
