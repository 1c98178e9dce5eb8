"""Where elements go: shapes, slices, joins, padding. No arithmetic on values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from graphpress.backends.fx.operands import Float, Int, Ints, Operand, Tensor
from graphpress.errors import Unsupported

# -- shapes --------------------------------------------------------------------------------------------------------------


def reshape(x: Tensor, shape: Ints, *, allowzero: int = 0) -> Tensor:
    """0 copies the size of the same axis, unless ``allowzero``; -1 is what is left."""
    if not allowzero:
        shape = [x.shape[i] if isinstance(s, int) and s == 0 else s for i, s in enumerate(shape)]
    return x.reshape(shape)


def reshape_1(x: Tensor, shape: Ints = (), *, consumed_inputs: Ints | None = None) -> Tensor:
    """``consumed_inputs`` is a hint to work in place."""
    return reshape(x, shape)


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """A matrix: the axes before ``axis``, and the others."""
    if axis == 1 and x.dim() > 1:
        return x.flatten(1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def unsqueeze(x: Tensor, axes: Ints) -> Tensor:
    """The axes are those of the result."""
    if len(axes) == 1:
        return x.unsqueeze(axes[0])
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    """Without ``perm`` the axes in reverse order."""
    return x.permute(tuple(reversed(range(x.dim()))) if perm is None else tuple(perm))


def expand(x: Tensor, shape: Ints) -> Tensor:
    """Broadcast both ways: where ``shape`` says 1, the size stays."""
    new = len(shape) - x.dim()
    if new < 0:
        shape, new = [*(1,) * -new, *shape], 0
    sizes = (*(1,) * new, *x.shape)
    return x.expand([own if isinstance(s, int) and s == 1 else s for own, s in zip(sizes, shape, strict=True)])


# -- joins and parts -----------------------------------------------------------------------------------------------------


def concat(*xs: Tensor, axis: int = 1) -> Tensor:
    """From opset 4 on the axis has to be given."""
    return torch.cat(xs, axis)


def split(
    x: Tensor, split: Ints | None = None, *, axis: int = 0, num_outputs: int | None = None, outputs: int = 1
) -> tuple[Tensor, ...]:
    """Parts of the given sizes, or equal ones of which the last may be smaller."""
    if split is None:
        count = num_outputs or outputs
        size = (x.shape[axis] + count - 1) // count
        split = [size] * (count - 1) + [x.shape[axis] - size * (count - 1)]
    return tuple(torch.split(x, list(split), axis))


def split_1(
    x: Tensor, split: Floats | None = None, *, axis: int = 0, outputs: int = 1
) -> tuple[Tensor, ...]:
    """The sizes may be an input of the data's type."""
    return globals()["split"](x, split and [int(s) for s in split], axis=axis, outputs=outputs)


def slice_(
    x: Tensor, starts: Ints, ends: Ints, axes: Ints | None = None, steps: Ints | None = None
) -> Tensor:
    """As in Python, but that a step backwards from before the first element starts at the first."""
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis, step = axes[i] if axes else i, steps[i] if steps else 1
        x = _forwards(x, axis, start, end, step) if step > 0 else _backwards(x, axis, start, end, step)
    return x
