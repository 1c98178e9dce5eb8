"""Read and write by index, order and condition."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import onnx_ir as ir
import torch

from graphpress.backends.fx import dtypes
from graphpress.backends.fx.operands import Float, Index, Int, Tensor
from graphpress.backends.fx.ops import unsigned
from graphpress.errors import Unsupported

Types: TypeAlias = tuple[str | None, ...]
_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _counted(index: Tensor, size: int) -> Tensor:
    """Indices from the front; the ONNX ones may be from the back."""
    index = index.long()
    return torch.where(index < 0, index + size, index)


# -- read --------------------------------------------------------------------------------------------------------------


def gather(x: Tensor, index: Index, *, axis: int = 0) -> Tensor:
    """Slices of ``x`` along one axis, in the shape of ``index``."""
    if not isinstance(index, torch.Tensor):
        return x.select(axis, index)
    axis = axis + x.dim() if axis < 0 else axis
    found = x.index_select(axis, _counted(index, x.shape[axis]).reshape(-1))
    return found if index.dim() == 1 else found.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def gather_elements(x: Tensor, index: Tensor, *, axis: int = 0) -> Tensor:
    return torch.gather(x, axis, _counted(index, x.shape[axis]))


def gather_nd(x: Tensor, index: Tensor, *, batch_dims: int = 0) -> Tensor:
    """The last axis of ``index`` holds places in the axes of ``x`` behind the shared ``batch_dims``."""
    batch = [
        torch.arange(x.shape[i], device=x.device).reshape(-1, *(1,) * (index.dim() - 2 - i)) for i in range(batch_dims)
    ]
    found: Tensor = torch.ops.aten.index.Tensor(x, [*batch, *_columns(index.long())])
    return found


def _columns(index: Tensor) -> Sequence[Tensor]:
    return [index.squeeze(-1)] if index.shape[-1] == 1 else index.unbind(-1)


def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    """The condition may be shorter than the axis."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.index_select(axis, condition.nonzero().squeeze(1))


def non_zero(x: Tensor) -> Tensor:
    """One row for each axis."""
    return x.nonzero().t()


def reverse_sequence(x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    """The first ``lengths[i]`` steps of sequence i in reverse order."""
    if {batch_axis, time_axis} != {0, 1}:
        raise Unsupported(f"batch_axis={batch_axis} and time_axis={time_axis} are not 0 and 1")
    lengths = lengths.long().unsqueeze(1)
    steps = torch.arange(x.shape[time_axis], device=x.device).unsqueeze(0)
    index = torch.where(steps < lengths, lengths - 1 - steps, steps)
    index = index if batch_axis == 0 else index.t()
    return torch.gather(x, time_axis, index.reshape(*index.shape, *(1,) * (x.dim() - 2)).expand(x.shape))


# -- write -------------------------------------------------------------------------------------------------------------


def scatter(x: Tensor, index: Tensor, updates: Tensor, *, axis: int = 0) -> Tensor:
    return torch.scatter(x, axis, _counted(index, x.shape[axis]), updates)


def scatter_elements(x: Tensor, index: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    """``updates`` may be combined with what is there, in any order."""
    index = _counted(index, x.shape[axis])
    if reduction == "none":
        return torch.scatter(x, axis, index, updates)
    return _combined(x, axis, index, updates, reduction)


def _combined(x: Tensor, axis: int, index: Tensor, updates: Tensor, reduction: str) -> Tensor:
    if reduction not in _REDUCE:
        raise Unsupported(f"there is no reduction {reduction!r}")
    if reduction == "add" and x.dtype != torch.bool:
        return torch.scatter_add(x, axis, index, updates)
    if x.dtype == torch.bool:  # or and and
        kind = "amax" if reduction in ("add", "max") else "amin"
        return x.byte().scatter_reduce(axis, index, updates.byte(), kind).bool()
    return x.scatter_reduce(axis, index, updates, _REDUCE[reduction])


def scatter_nd(x: Tensor, index: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """The last axis of ``index`` holds places in the first axes of ``x``."""
    if reduction in ("none", "add") and x.dtype != torch.bool:
        return torch.index_put(x, tuple(index.long().unbind(-1)), updates, accumulate=reduction == "add")
    depth = index.shape[-1]
    places = index.new_zeros(index.shape[:-1], dtype=torch.int64)
    for i, part in enumerate(index.unbind(-1)):
        places = places * x.shape[i] + _counted(part, x.shape[i])
    rows = x.reshape(math.prod(x.shape[:depth]), *x.shape[depth:])
    places = places.reshape(places.numel(), *(1,) * (rows.dim() - 1)).expand(-1, *rows.shape[1:])
    updates = updates.reshape(places.shape)
    written = (
        rows.scatter(0, places, updates) if reduction == "none" else _combined(rows, 0, places, updates, reduction)
    )
    return written.reshape(x.shape)


def tensor_scatter(
    past: Tensor, update: Tensor, write: Tensor | None = None, *, mode: str = "linear", axis: int = -2
) -> Tensor:
    """A cache with ``update`` written from ``write[i]`` on in sample i; ``circular`` starts again at the front."""
    if mode not in ("linear", "circular"):
        raise Unsupported(f"there is no mode {mode!r}")
    axis = axis + past.dim() if axis < 0 else axis
    places = torch.arange(update.shape[axis], device=past.device).expand(update.shape[0], -1)
    if write is not None:
        places = places + write.long().unsqueeze(1)
    if mode == "circular":
        places = places % past.shape[axis]
    places = places.reshape(update.shape[0], *(1,) * (axis - 1), -1, *(1,) * (past.dim() - axis - 1))
    if past.element_size() == 1:  # 8-bit floats have no kernel
        bits = past.view(torch.uint8).scatter(axis, places.expand(update.shape), update.view(torch.uint8))
        return bits.view(past.dtype)
    return past.scatter(axis, places.expand(update.shape), update)


# -- order -------------------------------------------------------------------------------------------------------------


def top_k(
    x: Tensor,
    k: Int,
    *,
    axis: int = -1,
    largest: int = 1,
    sorted: int = 1,
    in_types: Types = (),
) -> tuple[Tensor, Tensor]:
    """Of equal values the first counts, which a stable sort keeps and torch.topk does not."""
    x = unsigned.ordered(x, in_types) if in_types[:1] == ("UINT64",) else x
    values, index = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    values, index = values.narrow(axis, 0, k), index.narrow(axis, 0, k)
    return unsigned.ordered(values, in_types) if in_types[:1] == ("UINT64",) else values, index


def _arg(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def arg(
        x: Tensor,
        *,
        axis: int = 0,
        keepdims: int = 1,
        select_last_index: int = 0,
        in_types: Types = (),
    ) -> Tensor:
        if in_types == ("UINT64",):
            x = unsigned.ordered(x, in_types)
        if select_last_index:
            return x.shape[axis] - 1 - function(x.flip(axis), axis, bool(keepdims))
        return function(x, axis, bool(keepdims))

    arg.__name__ = arg.__qualname__ = name  # so that generated code can import it
    return arg


arg_max, arg_min = _arg("arg_max", torch.argmax), _arg("arg_min", torch.argmin)


def unique(
    x: Tensor, *, axis: int | None = None, sorted: int = 1, in_types: Types = ()
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(values, index of the first of each, which one each is, how often), in order or as they come."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    x = unsigned.ordered(x, in_types) if in_types == ("UINT64",) else x
    values, first, inverse, counts = _unique_numbers(x) if x.dim() == 1 else _unique_slices(x, axis)
    if not sorted:
        order = first.argsort()
        values, first, inverse, counts = (
            values.index_select(axis, order),
            first[order],
            order.argsort()[inverse],
            counts[order],
        )
    return unsigned.ordered(values, in_types) if in_types == ("UINT64",) else values, first, inverse, counts


def _unique_numbers(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A NaN is like another, and behind all numbers."""
    values, order = torch.sort(x, stable=True)
    same = (values[1:] == values[:-1]) | (values[1:].isnan() & values[:-1].isnan())
    new = torch.constant_pad_nd(~same, [min(1, len(x)), 0], True)
    inverse = torch.empty_like(order).scatter(0, order, new.cumsum(0) - 1)
    starts = new.nonzero().squeeze(1)
    ends = torch.cat((starts[1:], starts.new_full((1,), len(x))))[: len(starts)]
    return values[starts], order[starts], inverse, ends - starts


def _unique_slices(x: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    values, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True, dim=axis)
    places = torch.arange(x.shape[axis], device=x.device)
    first = torch.full_like(counts, x.shape[axis]).scatter_reduce(0, inverse, places, "amin")
    return values, first, inverse, counts


# -- masks -------------------------------------------------------------------------------------------------------------


def one_hot(index: Tensor, depth: Float, values: Tensor, *, axis: int = -1) -> Tensor:
    """``values`` are those of the cold and the hot places; an index out of range is hot nowhere."""
    depth = int(depth) if isinstance(depth, float) else depth
    axis = axis + index.dim() + 1 if axis < 0 else axis
    places = torch.arange(depth, device=index.device).reshape(-1, *(1,) * (index.dim() - axis))
    cold, hot = values.unbind(0)
    return torch.where(_counted(index, depth).unsqueeze(axis) == places, hot, cold)


def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0, in_types: Types = ()) -> Tensor:
    """Ones on a diagonal."""
    wanted = x.dtype if dtype is None else dtypes.torch_dtype(ir.DataType(dtype).name)
    rows, columns = (torch.arange(n, device=x.device) for n in x.shape)
    return (columns == rows.unsqueeze(1) + k).to(wanted)


def trilu(x: Tensor, k: Index = 0, *, upper: int = 1) -> Tensor:
    """The triangle from diagonal ``k`` on, or up to it."""
    if not isinstance(k, torch.Tensor):
        return x.triu(k) if upper else x.tril(k)
    rows, columns = (torch.arange(n, device=x.device) for n in x.shape[-2:])
    diagonal = columns - rows.unsqueeze(1)
    return torch.where(diagonal >= k if upper else diagonal <= k, x, torch.zeros_like(x))


OPS: dict[str, Callable[..., Any]] = {
    "Gather": gather, "GatherElements": gather_elements, "GatherND": gather_nd, "Compress": compress,
    "NonZero": non_zero, "ReverseSequence": reverse_sequence, "Scatter": scatter, "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd, "TensorScatter": tensor_scatter, "TopK": top_k, "ArgMax": arg_max, "ArgMin": arg_min,
    "Unique": unique, "OneHot": one_hot, "EyeLike": eye_like, "Trilu": trilu,
}  # fmt: skip
