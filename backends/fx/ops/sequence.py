"""Sequences are lists of tensors, an optional value that is not there is None. All of it runs in Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from graphpress.backends.fx.operands import Int, Ints, Tensor
from graphpress.backends.fx.ops.control import Body

# -- sequences ---------------------------------------------------------------------------------------------------------


def construct(*xs: Tensor) -> list[Tensor]:
    return list(xs)


def empty(*, dtype: int = 1) -> list[Tensor]:
    """Of any element type: a list has none."""
    return []


def at(xs: list[Tensor], position: Int) -> Tensor:
    return xs[position]


def insert(xs: list[Tensor], x: Tensor, position: Int | None = None) -> list[Tensor]:
    """Before a position, which may count from the end; at the end without."""
    position = len(xs) if position is None else position
    if position != len(xs):
        _check(position, len(xs))
    return [*xs[:position], x, *xs[position:]]


def erase(xs: list[Tensor], position: Int = -1) -> list[Tensor]:
    _check(position, len(xs))
    position %= len(xs)
    return xs[:position] + xs[position + 1 :]


def _check(position: int, length: int) -> None:
    """Slices would take any position."""
    if not -length <= position < length:
        raise IndexError(f"position {position} in a sequence of {length}")


def length(xs: list[Tensor], *, like: Tensor | None = None) -> Tensor:
    return torch.tensor(len(xs), device=None if like is None else like.device)


def split(x: Tensor, split: Ints | None = None, *, axis: int = 0, keepdims: int = 1) -> list[Tensor]:
    """Into parts of the given lengths, of one length (the last may be shorter), or one by one."""
    if split is None:
        return list(x.split(1, axis) if keepdims else x.unbind(axis))
    return list(x.split(split[0] if len(split) == 1 else list(split), axis))


def concat(xs: list[Tensor], *, axis: int, new_axis: int = 0) -> Tensor:
    return torch.stack(xs, axis) if new_axis else torch.cat(xs, axis)


def map_(xs: list[Tensor], *more: Any, body: Body) -> tuple[list[Tensor], ...]:
    """The body on each element of the first sequence, with those of further sequences and with tensors as they are."""
    module, captured, results = body
    found = [module(x, *(m[i] if isinstance(m, list) else m for m in more), *captured) for i, x in enumerate(xs)]
    return tuple([f[i] for f in found] for i in range(len(results)))


# -- optional values ---------------------------------------------------------------------------------------------------


def optional(x: Any = None, *, type: str = "") -> Any:
    return x


def has_element(x: Any = None, *, like: Tensor | None = None) -> Tensor:
    return torch.tensor(x is not None, device=None if like is None else like.device)


def get_element(x: Any) -> Any:
    if x is None:
        raise ValueError("the optional value is not there")
    return x


OPS: dict[str, Callable[..., Any]] = {
    "SequenceConstruct": construct, "SequenceEmpty": empty, "SequenceAt": at, "SequenceInsert": insert,
    "SequenceErase": erase, "SequenceLength": length, "SplitToSequence": split, "ConcatFromSequence": concat,
    "SequenceMap": map_, "Optional": optional, "OptionalHasElement": has_element, "OptionalGetElement": get_element,
}  # fmt: skip
