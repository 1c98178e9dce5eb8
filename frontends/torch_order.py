"""Running extremes and products, order statistics and places among sorted numbers, for torch's exporter.

It has no form of them. Running results come by doubling: after round i each place holds the result over the 2^i places
up to it, so that 20 rounds do for a million places where the length is not known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

_ROUNDS = 20


def table(torch: Any, opset: int) -> dict[Any, Callable[..., Any]]:
    """What the exporter is to write for the operators: for its ``custom_translation_table``."""
    from onnxscript.values import Opset

    op, aten = Opset("", max(opset, 18)), torch.ops.aten

    def cummax(self: Any, dim: int) -> Any:
        return _extremes(op, self, dim, op.Max, _least(self.dtype))

    def cummin(self: Any, dim: int) -> Any:
        return _extremes(op, self, dim, op.Min, _most(self.dtype))

    def cumprod(self: Any, dim: int, dtype: int = -1) -> Any:
        return _running(op, self, dim, op.Mul, 1)

    def kthvalue(self: Any, k: int, dim: int = -1, keepdim: bool = False) -> Any:
        return _smallest(op, self, op.Constant(value_ints=[k]), dim, keepdim)

    def sort(self: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
        length = op.Shape(self, start=dim % len(self.shape), end=dim % len(self.shape) + 1)
        return op.TopK(self, length, axis=dim, largest=int(descending))  # of equals, the first comes first

    def median(self: Any) -> Any:
        flat = op.Reshape(self, op.Constant(value_ints=[-1]))
        flat.shape = ir.Shape([None])
        return _smallest(op, flat, _middle(op, flat, 0), 0, False)[0]

    def median_dim(self: Any, dim: int, keepdim: bool = False) -> Any:
        return _smallest(op, self, _middle(op, self, dim), dim, keepdim)

    def searchsorted(sorted_sequence: Any, self: Any, out_int32: bool = False, right: bool = False) -> Any:
        return _places(op, sorted_sequence, self, out_int32, right)

    def bucketize(self: Any, boundaries: Any, out_int32: bool = False, right: bool = False) -> Any:
        return _places(op, boundaries, self, out_int32, right)

    return {
        aten.cummax.default: cummax, aten.cummin.default: cummin, aten.cumprod.default: cumprod,
        aten.kthvalue.default: kthvalue, aten.median.default: median, aten.median.dim: median_dim,
        aten.sort.stable: sort, aten.searchsorted.Tensor: searchsorted, aten.bucketize.Tensor: bucketize,
    }  # fmt: skip


def _least(dtype: ir.DataType) -> float:
    return -math.inf if dtype.is_floating_point() else int(np.iinfo(dtype.numpy()).min)


def _most(dtype: ir.DataType) -> float:
    return math.inf if dtype.is_floating_point() else int(np.iinfo(dtype.numpy()).max)


def _running(op: Any, x: Any, dim: int, combine: Callable[..., Any], neutral: float, dtype: Any = None) -> Any:
    """The combination of all places of an axis up to each, by an operator that may be grouped in any way."""
    rank, size = len(x.shape), x.shape[dim]
    dtype = dtype or x.dtype
    fill = op.Constant(value=ir.tensor(neutral, dtype=dtype))
    axis = op.Constant(value_ints=[dim % rank])
    length = op.Shape(x, start=dim % rank, end=dim % rank + 1)
    known = isinstance(size, int)
    for i in range(math.ceil(math.log2(size)) if known and size > 1 else 0 if known else _ROUNDS):
        step = op.Constant(value_ints=[2**i])
        shift = step if known else op.Min(step, length)
        kept = op.Slice(x, op.Constant(value_ints=[0]), op.Sub(length, shift), axis)
        before = op.Concat(shift, op.Constant(value_ints=[0]), axis=0)
        x = combine(op.Pad(kept, before, fill, axis), x)
    return x


def _extremes(op: Any, x: Any, dim: int, combine: Callable[..., Any], neutral: float) -> Any:
    """(values, the last place that holds each)."""
    rank = len(x.shape)
    found = _running(op, x, dim, combine, neutral, x.dtype)
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    length = op.Squeeze(op.Shape(x, start=dim % rank, end=dim % rank + 1))
    later = op.Constant(value_ints=[*range(1, rank - dim % rank)])
    places = op.Range(zero, length, one)
    places = op.Unsqueeze(places, later) if dim % rank < rank - 1 else places
    where = op.Where(op.Equal(x, found), places, zero)
    where.shape, where.dtype = x.shape, ir.DataType.INT64
    return found, _running(op, where, dim, op.Max, 0)


def _middle(op: Any, x: Any, dim: int) -> Any:
    """The rank of the lower of two middle places, [1]."""
    one, two = op.Constant(value_ints=[1]), op.Constant(value_ints=[2])
    rank = len(x.shape)
    return op.Div(op.Add(op.Shape(x, start=dim % rank, end=dim % rank + 1), one), two)


def _smallest(op: Any, x: Any, k: Any, dim: int, keepdim: bool) -> Any:
    """(the k-th smallest value along an axis, its place)."""
    found = op.TopK(x, k, axis=dim, largest=0)
    axis = op.Constant(value_ints=[dim])
    last = [op.Slice(part, op.Constant(value_ints=[-1]), op.Constant(value_ints=[2**31]), axis) for part in found]
    return last if keepdim else [op.Squeeze(part, axis) for part in last]


def _places(op: Any, bounds: Any, x: Any, narrow: bool, right: bool) -> Any:
    """How many bounds are less than each number, or no more than it; bounds by row or the same for all."""
    row = bounds if len(bounds.shape) == 1 else op.Unsqueeze(bounds, op.Constant(value_ints=[-2]))
    column = op.Unsqueeze(x, op.Constant(value_ints=[-1]))
    below = op.LessOrEqual(row, column) if right else op.Less(row, column)
    return op.ReduceSum(op.Cast(below, to=6 if narrow else 7), op.Constant(value_ints=[-1]), keepdims=0)
