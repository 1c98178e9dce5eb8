"""Where elements go: shapes, slices, joins, padding. No arithmetic on values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from graphpress.backends.fx import dtypes
from graphpress.backends.fx.operands import Float, Floats, Ints, Operand, Tensor
from graphpress.errors import Unsupported

_FAR = 2**31  # a step over any axis, which strides do not overflow with

# -- shapes ------------------------------------------------------------------------------------------------------------


def reshape(x: Tensor, shape: Ints, *, allowzero: int = 0) -> Tensor:
    """0 copies the size of the same axis, unless ``allowzero``; -1 is what is left."""
    if not allowzero:
        shape = [x.shape[i] if isinstance(s, int) and s == 0 else s for i, s in enumerate(shape)]
    return x.reshape(shape)


def reshape_1(x: Tensor, *, shape: Sequence[int] = (), consumed_inputs: Sequence[int] | None = None) -> Tensor:
    """``consumed_inputs`` allowed to work in place."""
    return reshape(x, shape)


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """A matrix: the axes before ``axis``, and the others."""
    if axis == 1 and x.dim() > 1:
        return x.flatten(1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    """No axes mean every axis of size 1."""
    return x.squeeze(tuple(axes)) if axes else x.squeeze()


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
    wanted = (*(1,) * -new, *shape)
    return x.expand([-1 if isinstance(s, int) and s == 1 and i >= new else s for i, s in enumerate(wanted)])


def constant_of_shape(
    shape: Ints, *, value: float = 0.0, out_types: tuple[str | None, ...] = (None,), like: Tensor | None = None
) -> Tensor:
    """Full of one number; float32 zeros by default."""
    name = out_types[0] or ("BOOL" if isinstance(value, bool) else "INT64" if isinstance(value, int) else "FLOAT")
    if name == "UINT64" and value >= 2**63:  # held by its bits
        value -= 2**64
    return torch.full(shape, value, dtype=dtypes.torch_dtype(name), device=None if like is None else like.device)


# -- joins and parts ---------------------------------------------------------------------------------------------------


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


def split_1(x: Tensor, split: Floats | None = None, *, axis: int = 0, outputs: int = 1) -> tuple[Tensor, ...]:
    """The sizes may be an input of the data's type."""
    return _split(x, None if split is None else [int(s) for s in split], axis=axis, outputs=outputs)


_split = split  # its name is an argument's above


def slice_(x: Tensor, starts: Ints, ends: Ints, axes: Ints | None = None, steps: Ints | None = None) -> Tensor:
    """As in Python, but a step backwards that starts before the first element starts at the first."""
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis, step = i if axes is None else axes[i], 1 if steps is None else steps[i]
        if isinstance(step, int):
            step = max(-_FAR, min(step, _FAR))
        if step > 0:
            x = torch.ops.aten.slice.Tensor(x, axis, start, end, step)
        else:
            x = _backwards(x, axis, start, end, -step)
    return x


def _backwards(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    size = x.shape[axis]
    first = torch.sym_max(torch.sym_min(start + size if start < 0 else start, size - 1), 0)
    beyond = torch.sym_max(torch.sym_min(end + size if end < 0 else end, size - 1), -1)
    count = torch.sym_max((first - beyond + step - 1) // step, 0)
    return torch.ops.aten.slice.Tensor(x, axis, first - (count - 1) * step, first + 1, step).flip(axis)


def tile(x: Tensor, repeats: Ints) -> Tensor:
    return x.repeat(tuple(repeats))


def tile_1(x: Tensor, tiles: Float, axis: Float) -> Tensor:
    """Along one axis; both numbers are of the data's type."""
    repeats = [1] * x.dim()
    repeats[int(axis)] = int(tiles)
    return x.repeat(repeats)


# -- padding -----------------------------------------------------------------------------------------------------------


def pad(
    x: Tensor, pads: Ints, value: Operand | None = None, axes: Ints | None = None, *, mode: str = "constant"
) -> Tensor:
    """``pads`` has all the beginnings first, then all the ends; below zero it crops."""
    count = len(pads) // 2
    axes = range(count) if axes is None else [a % x.dim() for a in axes]
    around = {a: (pads[i], pads[count + i]) for i, a in enumerate(axes)}
    if mode == "constant":
        return _constant_pad(x, around, 0 if value is None else value)
    if mode not in _SOURCES:
        raise Unsupported(f"there is no padding mode {mode!r}")
    spatial = x.dim() - 2
    if mode != "wrap" and x.is_floating_point() and x.element_size() > 1 and 1 <= spatial <= 3 and _inside(x, around):
        return F.pad(x, _last_first(x, around)[: 2 * spatial], "reflect" if mode == "reflect" else "replicate")
    for axis, (before, after) in around.items():
        x = _pad_by_index(x, axis, before, after, _SOURCES[mode])
    return x


def _last_first(x: Tensor, around: dict[int, tuple[int, int]]) -> list[int]:
    """Pads as torch wants them: of the last axis first."""
    return [p for axis in reversed(range(x.dim())) for p in around.get(axis, (0, 0))]


def _constant_pad(x: Tensor, around: dict[int, tuple[int, int]], value: Operand) -> Tensor:
    pads = _last_first(x, around)
    if not isinstance(value, torch.Tensor):
        return torch.constant_pad_nd(x, pads, value)
    inside = torch.constant_pad_nd(torch.ones_like(x, dtype=torch.bool), pads, False)
    return torch.where(inside, torch.constant_pad_nd(x, pads), value.reshape(()))


def _inside(x: Tensor, around: dict[int, tuple[int, int]]) -> bool:
    """Whether torch's own kernel can do it: only axes behind the first two, no cropping, no second reflection."""
    return all(
        max(p) == min(p) == 0 if axis < 2 else min(p) >= 0 and max(p) < x.shape[axis] for axis, p in around.items()
    )


def _pad_by_index(x: Tensor, axis: int, before: int, after: int, source: Callable[[Tensor, int], Tensor]) -> Tensor:
    if isinstance(before, int) and isinstance(after, int) and before == after == 0:
        return x
    x = torch.constant_pad_nd(x, _last_first(x, {axis: (torch.sym_min(before, 0), torch.sym_min(after, 0))}))
    before, after = torch.sym_max(before, 0), torch.sym_max(after, 0)
    size = x.shape[axis]
    return x.index_select(axis, source(torch.arange(size + before + after, device=x.device) - before, size))


def _reflected(index: Tensor, size: int) -> Tensor:
    """Without repeating the border, as often as it takes."""
    return (size - 1) - ((index % max(2 * size - 2, 1)) - (size - 1)).abs() if size > 1 else torch.zeros_like(index)


def _edge(index: Tensor, size: int) -> Tensor:
    return index.clamp(0, size - 1)


def _wrapped(index: Tensor, size: int) -> Tensor:
    return index % size


_SOURCES: dict[str, Callable[[Tensor, int], Tensor]] = {"reflect": _reflected, "edge": _edge, "wrap": _wrapped}


def pad_1(x: Tensor, *, paddings: Sequence[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    return pad(x, paddings, value, mode=mode)


def pad_2(x: Tensor, *, pads: Sequence[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    return pad(x, pads, value, mode=mode)


OPS: dict[str, Callable[..., Any]] = {
    "Reshape": reshape_1, "Reshape@5": reshape, "Flatten": flatten, "Squeeze": squeeze, "Unsqueeze": unsqueeze,
    "Transpose": transpose, "Expand": expand, "ConstantOfShape": constant_of_shape, "Concat": concat,
    "Split": split_1, "Split@2": split, "Slice": slice_, "Tile": tile_1, "Tile@6": tile,
    "Pad": pad_1, "Pad@2": pad_2, "Pad@11": pad,
}  # fmt: skip
