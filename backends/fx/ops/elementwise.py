"""One element at a time: arithmetic, comparison, logic, bits. Unsigned types that torch lacks are in ``unsigned``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from graphpress.backends.fx.operands import Operand, Tensor

_FLOAT_MAX = float(torch.finfo(torch.float32).max)

# -- arithmetic --------------------------------------------------------------------------------------------------------


def add(a: Operand, b: Operand) -> Tensor:
    return a + b


def sub(a: Operand, b: Operand) -> Tensor:
    return a - b


def mul(a: Operand, b: Operand) -> Tensor:
    return a * b


def div(a: Tensor, b: Operand) -> Tensor:
    """Integers are truncated towards zero."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def mod(a: Tensor, b: Operand, *, fmod: int = 0) -> Tensor:
    """The sign is the divisor's, with ``fmod`` the dividend's."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def pow_(x: Tensor, y: Operand) -> Tensor:
    """The result has the base's type, whatever the exponent's."""
    if x.is_floating_point():
        return torch.pow(x, y).to(x.dtype)
    if isinstance(y, torch.Tensor) and not y.is_floating_point():
        return torch.pow(x, y).to(x.dtype)
    if isinstance(y, int) and y >= 0:
        return torch.pow(x, y)
    return torch.pow(x.double(), y).to(x.dtype)


def erf(x: Tensor) -> Tensor:
    """Of integers too."""
    return torch.erf(x).to(x.dtype)


def identity(x: Tensor) -> Tensor:
    return x


# -- any number of operands --------------------------------------------------------------------------------------------


def max_(*xs: Tensor) -> Tensor:
    return functools.reduce(torch.maximum, xs)


def min_(*xs: Tensor) -> Tensor:
    return functools.reduce(torch.minimum, xs)


def sum_(*xs: Tensor) -> Tensor:
    return functools.reduce(torch.add, xs)


def mean(*xs: Tensor) -> Tensor:
    return sum_(*xs) / len(xs)


# -- comparison --------------------------------------------------------------------------------------------------------


def equal(a: Operand, b: Operand) -> Tensor:
    return a == b


def less(a: Operand, b: Operand) -> Tensor:
    return a < b


def less_or_equal(a: Operand, b: Operand) -> Tensor:
    return a <= b


def greater(a: Operand, b: Operand) -> Tensor:
    return a > b


def greater_or_equal(a: Operand, b: Operand) -> Tensor:
    return a >= b


def is_nan(x: Tensor) -> Tensor:
    return torch.isnan(_wide(x))


def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    x = _wide(x)
    if detect_negative and detect_positive:
        return torch.isinf(x)
    if detect_negative or detect_positive:
        return torch.isposinf(x) if detect_positive else torch.isneginf(x)
    return torch.zeros_like(x, dtype=torch.bool)


def _wide(x: Tensor) -> Tensor:
    """8-bit floats as float32, which torch compares."""
    return x.float() if x.element_size() == 1 else x


# -- limits ------------------------------------------------------------------------------------------------------------


def clip(x: Tensor, min: Operand | None = None, max: Operand | None = None) -> Tensor:
    """Where the limits cross, the upper one holds. A limit that is not given is none."""
    if min is None or max is None:
        return x if min is max else torch.clamp(x, min=min, max=max)
    if isinstance(min, torch.Tensor) == isinstance(max, torch.Tensor):
        return torch.clamp(x, min, max)
    return torch.clamp(torch.clamp(x, min=min), max=max)


def clip_6(x: Tensor, *, min: float = -_FLOAT_MAX, max: float = _FLOAT_MAX) -> Tensor:
    """The limits are attributes; by default the largest float32, which half precision does not reach."""
    most = torch.finfo(x.dtype).max
    return clip(x, min if min >= -most else None, max if max <= most else None)


# -- bits --------------------------------------------------------------------------------------------------------------


def bit_shift(x: Tensor, y: Operand, *, direction: str) -> Tensor:
    """A right shift of a signed type fills with the sign; a shift out of range leaves nothing else."""
    return torch.bitwise_left_shift(x, y) if direction == "LEFT" else torch.bitwise_right_shift(x, y)


# -- opsets before 7: the second operand along axes of the first -------------------------------------------------------


def aligned(b: Tensor, rank: int, axis: int | None) -> Tensor:
    """``b`` along the axes of a tensor of this rank from ``axis`` on; without, along the last ones."""
    if axis is None:
        return b
    return b.reshape(*b.shape, *(1,) * (rank - axis % max(rank, 1) - b.dim()))


def _by_axis(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def legacy(a: Tensor, b: Tensor, *, broadcast: int = 0, axis: int | None = None) -> Tensor:
        return function(a, aligned(b, a.dim(), axis) if broadcast else b)

    legacy.__name__ = legacy.__qualname__ = name  # so that generated code can import it
    return legacy


add_1, sub_1, mul_1 = _by_axis("add_1", add), _by_axis("sub_1", sub), _by_axis("mul_1", mul)
div_1, pow_1 = _by_axis("div_1", div), _by_axis("pow_1", pow_)
and_1, or_1 = _by_axis("and_1", torch.logical_and), _by_axis("or_1", torch.logical_or)
xor_1, equal_1 = _by_axis("xor_1", torch.logical_xor), _by_axis("equal_1", equal)
less_1, greater_1 = _by_axis("less_1", less), _by_axis("greater_1", greater)

OPS: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan, "Atanh": torch.atanh, "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh,
    "Erf": erf, "Exp": torch.exp, "Floor": torch.floor, "Identity": identity, "Log": torch.log, "Neg": torch.neg,
    "Reciprocal": torch.reciprocal, "Round": torch.round, "Sign": torch.sign, "Sin": torch.sin, "Sinh": torch.sinh,
    "Sqrt": torch.sqrt, "Tan": torch.tan,
    "Add": add_1, "Add@7": add, "Sub": sub_1, "Sub@7": sub, "Mul": mul_1, "Mul@7": mul, "Div": div_1, "Div@7": div,
    "Mod": mod, "Pow": pow_1, "Pow@7": pow_, "Max": max_, "Min": min_, "Sum": sum_, "Mean": mean,
    "Equal": equal_1, "Equal@7": equal, "Less": less_1, "Less@7": less, "Greater": greater_1, "Greater@7": greater,
    "LessOrEqual": less_or_equal, "GreaterOrEqual": greater_or_equal, "IsNaN": is_nan, "IsInf": is_inf,
    "And": and_1, "And@7": torch.logical_and, "Or": or_1, "Or@7": torch.logical_or,
    "Xor": xor_1, "Xor@7": torch.logical_xor, "Not": torch.logical_not, "Where": torch.where,
    "Clip": clip_6, "Clip@11": clip,
    "BitShift": bit_shift, "BitwiseAnd": torch.bitwise_and, "BitwiseNot": torch.bitwise_not,
    "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor,
}  # fmt: skip
