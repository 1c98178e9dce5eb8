"""Many elements to one: sums, products, extremes, norms; and running sums and products."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from graphpress.backends.fx.operands import Int, Ints, Tensor
from graphpress.backends.fx.ops import unsigned

Reduction: TypeAlias = Callable[[Tensor, tuple[int, ...], bool], Tensor]  # of x over these axes, which may be kept
Types: TypeAlias = tuple[str | None, ...]

# -- what is reduced how -----------------------------------------------------------------------------------------------


def _total(x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    return x.sum(dims, keepdim, dtype=x.dtype)


def _product(x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    """torch multiplies along one axis at a time."""
    for dim in sorted((d % x.dim() for d in dims), reverse=True):
        x = x.prod(dim, keepdim, dtype=x.dtype)
    return x


def _average(x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    """Of integers it is truncated."""
    if x.is_floating_point():
        return x.mean(dims, keepdim)
    count = math.prod(x.shape[d] for d in dims)
    return torch.div(x.sum(dims, keepdim, dtype=torch.int64), count, rounding_mode="trunc").to(x.dtype)


def _largest(x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    """Of nothing it is the least number of the type."""
    if any(x.shape[d] == 0 for d in dims):
        least = -math.inf if x.is_floating_point() else 0 if x.dtype == torch.bool else torch.iinfo(x.dtype).min
        return torch.full_like(_total(x, dims, keepdim), least)
    return x.amax(dims, keepdim)


def _smallest(x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    """Of nothing it is the greatest number of the type."""
    if any(x.shape[d] == 0 for d in dims):
        most = math.inf if x.is_floating_point() else 1 if x.dtype == torch.bool else torch.iinfo(x.dtype).max
        return torch.full_like(_total(x, dims, keepdim), most)
    return x.amin(dims, keepdim)


def _l1(x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    if x.is_floating_point():
        return torch.linalg.vector_norm(x, 1, dims, keepdim)
    return _total(x.abs(), dims, keepdim)


def _l2(x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    """Squares of integers wrap, as in the function that the standard says it is."""
    if x.is_floating_point():
        return torch.linalg.vector_norm(x, 2, dims, keepdim)
    return _sum_square(x, dims, keepdim).double().sqrt().to(x.dtype)


def _sum_square(x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    """Half precision adds up in single."""
    wide = x.float() if x.is_floating_point() and x.element_size() == 2 else x
    return _total(wide * wide, dims, keepdim).to(x.dtype)


def _log_sum(x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    return _total(x, dims, keepdim).log() if x.is_floating_point() else _in_double(_log_sum, x, dims, keepdim)


def _log_sum_exp(x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    return torch.logsumexp(x, dims, keepdim) if x.is_floating_point() else _in_double(_log_sum_exp, x, dims, keepdim)


def _in_double(reduction: Reduction, x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    return reduction(x.double(), dims, keepdim).to(x.dtype)


# -- operators ---------------------------------------------------------------------------------------------------------


def _reduced(reduction: Reduction, x: Tensor, axes: Ints | None, keepdims: int, noop: int) -> Tensor:
    """No axes mean all of them, or with ``noop`` that each element is reduced by itself."""
    if axes:
        return reduction(x, tuple(axes), bool(keepdims))
    if noop:
        return reduction(x.unsqueeze(0), (0,), False)
    return reduction(x, tuple(range(x.dim())), bool(keepdims)) if x.dim() else _reduced(reduction, x, None, 0, 1)


def _operator(name: str, reduction: Reduction) -> Callable[..., Tensor]:
    def reduce(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        return _reduced(reduction, x, axes, keepdims, noop_with_empty_axes)

    reduce.__name__ = reduce.__qualname__ = name  # so that generated code can import it
    return reduce


def _carried(name: str, reduction: Reduction, before: Form | None, after: Form) -> Callable[..., Tensor]:
    """The operator for unsigned types in wider ones."""

    def reduce(
        x: Tensor,
        axes: Ints | None = None,
        *,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
        in_types: Types = (),
    ) -> Tensor:
        given = x if before is None else before(x, in_types[:1])
        return after(_reduced(reduction, given, axes, keepdims, noop_with_empty_axes), in_types[:1])

    reduce.__name__ = reduce.__qualname__ = name
    return reduce


Form: TypeAlias = Callable[[Tensor, Types], Tensor]


def _double(x: Tensor, types: Types) -> Tensor:
    wide = x.double()
    return torch.where(x < 0, wide + 2.0**64, wide) if types == ("UINT64",) else wide


def _whole(x: Tensor, types: Types) -> Tensor:
    return torch.where(x < 2.0**63, x, x - 2.0**64).long() if types == ("UINT64",) else x.to(_holder(types))


def _holder(types: Types) -> torch.dtype:
    return torch.int32 if types == ("UINT16",) else torch.int64


def _root(x: Tensor, types: Types) -> Tensor:
    return _whole(_double(unsigned.wrapped(x, types), types).sqrt(), types)


def _unordered(x: Tensor, types: Types) -> Tensor:
    """The extreme of nothing is that of the wider type, whose low bits are right."""
    return unsigned.wrapped(unsigned.ordered(x, types), types)


reduce_sum, reduce_prod = _operator("reduce_sum", _total), _operator("reduce_prod", _product)
reduce_mean, reduce_max = _operator("reduce_mean", _average), _operator("reduce_max", _largest)
reduce_min, reduce_l1 = _operator("reduce_min", _smallest), _operator("reduce_l1", _l1)
reduce_l2, reduce_sum_square = _operator("reduce_l2", _l2), _operator("reduce_sum_square", _sum_square)
reduce_log_sum, reduce_log_sum_exp = (
    _operator("reduce_log_sum", _log_sum),
    _operator("reduce_log_sum_exp", _log_sum_exp),
)

carried_sum = _carried("carried_sum", _total, None, unsigned.wrapped)
carried_prod = _carried("carried_prod", _product, None, unsigned.wrapped)
carried_sum_square = _carried("carried_sum_square", _sum_square, None, unsigned.wrapped)
carried_mean = _carried("carried_mean", _average, _double, _whole)
carried_l2 = _carried("carried_l2", _sum_square, None, _root)
carried_log_sum = _carried("carried_log_sum", _log_sum, _double, _whole)
carried_log_sum_exp = _carried("carried_log_sum_exp", _log_sum_exp, _double, _whole)
carried_max = _carried("carried_max", _largest, unsigned.ordered, _unordered)
carried_min = _carried("carried_min", _smallest, unsigned.ordered, _unordered)

# -- running -----------------------------------------------------------------------------------------------------------


def cum_sum(x: Tensor, axis: Int, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """``exclusive``: of what comes before; ``reverse``: from the end."""
    return _running(torch.cumsum, x, axis, exclusive, reverse, 0)


def cum_prod(x: Tensor, axis: Int, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _running(torch.cumprod, x, axis, exclusive, reverse, 1)


def _running(function: Callable[..., Tensor], x: Tensor, axis: int, exclusive: int, reverse: int, first: int) -> Tensor:
    x = x.flip(axis) if reverse else x
    if exclusive:  # one step later, with the neutral element in front
        behind = x.dim() - 1 - axis % x.dim()
        x = torch.constant_pad_nd(x, [0, 0] * behind + [1, -1], first)
    x = function(x, axis, dtype=x.dtype)
    return x.flip(axis) if reverse else x


def carried_cum_sum(x: Tensor, axis: Int, *, exclusive: int = 0, reverse: int = 0, in_types: Types = ()) -> Tensor:
    return unsigned.wrapped(cum_sum(x, axis, exclusive=exclusive, reverse=reverse), in_types[:1])


def carried_cum_prod(x: Tensor, axis: Int, *, exclusive: int = 0, reverse: int = 0, in_types: Types = ()) -> Tensor:
    return unsigned.wrapped(cum_prod(x, axis, exclusive=exclusive, reverse=reverse), in_types[:1])


OPS: dict[str, Callable[..., Any]] = {
    "ReduceSum": reduce_sum, "ReduceProd": reduce_prod, "ReduceMean": reduce_mean, "ReduceMax": reduce_max,
    "ReduceMin": reduce_min, "ReduceL1": reduce_l1, "ReduceL2": reduce_l2, "ReduceSumSquare": reduce_sum_square,
    "ReduceLogSum": reduce_log_sum, "ReduceLogSumExp": reduce_log_sum_exp, "CumSum": cum_sum, "CumProd": cum_prod,
    "ReduceSum:carried": carried_sum, "ReduceL1:carried": carried_sum, "ReduceProd:carried": carried_prod,
    "ReduceSumSquare:carried": carried_sum_square, "ReduceMean:carried": carried_mean, "ReduceL2:carried": carried_l2,
    "ReduceLogSum:carried": carried_log_sum, "ReduceLogSumExp:carried": carried_log_sum_exp,
    "ReduceMax:carried": carried_max, "ReduceMin:carried": carried_min,
    "CumSum:carried": carried_cum_sum, "CumProd:carried": carried_cum_prod,
}  # fmt: skip
