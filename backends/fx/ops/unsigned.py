"""Arithmetic of the unsigned types that torch holds in wider ones: UINT16, UINT32, and UINT64 by its bits.

The table's entries are called ``"Add:carried"``: what an operator is when an input has a type that torch does not
compute with. Operators that are not here have no need of a form of their own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from graphpress.backends.fx.operands import Tensor
from graphpress.backends.fx.ops import activation, elementwise, products
from graphpress.errors import Unsupported

_SIGN = -(2**63)


def wrapped(x: Tensor, types: tuple[str | None, ...]) -> Tensor:
    """Modulo 2**bits; 64 bits wrap by themselves."""
    bits = _bits(types)
    return x if bits == 64 else x & (2**bits - 1)


def ordered(x: Tensor, types: tuple[str | None, ...]) -> Tensor:
    """Signed numbers in the order of the unsigned ones; it is its own inverse."""
    return x ^ _SIGN if _bits(types) == 64 else x


def _bits(types: tuple[str | None, ...]) -> int:
    return next((int(t[4:]) for t in types if t and t.startswith("UINT")), 64)


def _wrapping(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def apply(*xs: Tensor, in_types: tuple[str | None, ...] = ()) -> Tensor:
        return wrapped(function(*xs), in_types)

    apply.__name__ = apply.__qualname__ = name  # so that generated code can import it
    return apply


def _ordering(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def apply(*xs: Tensor, in_types: tuple[str | None, ...] = ()) -> Tensor:
        return function(*(ordered(x, in_types) for x in xs))

    apply.__name__ = apply.__qualname__ = name
    return apply


def div(a: Tensor, b: Tensor, *, in_types: tuple[str | None, ...] = ()) -> Tensor:
    """Long division by halves where the top bit may be set (Hacker's Delight, 9-3)."""
    if _bits(in_types) < 64:
        return torch.div(a, b, rounding_mode="trunc")
    half = torch.div(_shifted_right(a, 1), b, rounding_mode="trunc") << 1
    rest = a - half * b
    near = half + (rest ^ _SIGN >= b ^ _SIGN).to(a.dtype)
    return torch.where(b < 0, (a ^ _SIGN >= b ^ _SIGN).to(a.dtype), near)


def mod(a: Tensor, b: Tensor, *, fmod: int = 0, in_types: tuple[str | None, ...] = ()) -> Tensor:
    """Both signs are positive, so ``fmod`` makes no difference."""
    return a - div(a, b, in_types=in_types) * b


def pow_(x: Tensor, y: Tensor, *, in_types: tuple[str | None, ...] = ()) -> Tensor:
    if not y.is_floating_point():
        return wrapped(torch.pow(x, y).to(x.dtype), in_types[:1])
    base = torch.where(x < 0, x.double() + 2.0**64, x.double())
    power = torch.pow(base, y)
    return torch.where(power < 2.0**63, power, power - 2.0**64).to(x.dtype)


def max_(*xs: Tensor, in_types: tuple[str | None, ...] = ()) -> Tensor:
    return ordered(functools.reduce(torch.maximum, [ordered(x, in_types) for x in xs]), in_types)


def min_(*xs: Tensor, in_types: tuple[str | None, ...] = ()) -> Tensor:
    return ordered(functools.reduce(torch.minimum, [ordered(x, in_types) for x in xs]), in_types)


def clip(
    x: Tensor,
    min: Tensor | None = None,
    max: Tensor | None = None,
    *,
    in_types: tuple[str | None, ...] = (),
) -> Tensor:
    x = x if min is None else max_(x, min, in_types=in_types)
    return x if max is None else min_(x, max, in_types=in_types)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """Nothing is negative."""
    return x


def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5, in_types: tuple[str | None, ...] = ()) -> Tensor:
    if _bits(in_types) == 64:
        raise Unsupported("shrinks no numbers of UINT64")
    return activation.shrink(x, bias=bias, lambd=lambd)


def einsum(*xs: Tensor, equation: str, in_types: tuple[str | None, ...] = ()) -> Tensor:
    return wrapped(products.integer_einsum(*xs, equation=equation), in_types)


def gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0,
    transB: int = 0, in_types: tuple[str | None, ...] = (),
) -> Tensor:  # fmt: skip
    if alpha != 1.0 or beta != 1.0:
        raise Unsupported("scales no products of unsigned integers")
    return wrapped(products.gemm(a, b, c, transA=transA, transB=transB), in_types)


def sign(x: Tensor) -> Tensor:
    return (x != 0).to(x.dtype)


def bit_shift(x: Tensor, y: Tensor, *, direction: str, in_types: tuple[str | None, ...] = ()) -> Tensor:
    """Zeros come in; a shift by all bits or more leaves none."""
    y = torch.where(y < 0, 64, y)
    if direction == "LEFT":
        return wrapped(torch.bitwise_left_shift(x, y), in_types)
    return torch.where(y == 0, x, _shifted_right(x, y))


def _shifted_right(x: Tensor, y: Tensor | int) -> Tensor:
    """By one bit at least, zeros coming in."""
    return torch.bitwise_right_shift((x >> 1) & (2 ** (8 * x.element_size() - 1) - 1), y - 1)


add, sub = _wrapping("add", torch.add), _wrapping("sub", torch.sub)
mul, bitwise_not = _wrapping("mul", torch.mul), _wrapping("bitwise_not", torch.bitwise_not)
matmul = _wrapping("matmul", products.integer_matmul)
less, less_or_equal = _ordering("less", torch.lt), _ordering("less_or_equal", torch.le)
greater, greater_or_equal = _ordering("greater", torch.gt), _ordering("greater_or_equal", torch.ge)


OPS: dict[str, Callable[..., Any]] = {
    "Abs:carried": elementwise.identity, "Add:carried": add, "Sub:carried": sub, "Mul:carried": mul,
    "Div:carried": div, "Mod:carried": mod, "Pow:carried": pow_, "Max:carried": max_, "Min:carried": min_,
    "Clip:carried": clip, "Sign:carried": sign, "Equal:carried": torch.eq, "Less:carried": less,
    "LessOrEqual:carried": less_or_equal, "Greater:carried": greater, "GreaterOrEqual:carried": greater_or_equal,
    "BitShift:carried": bit_shift, "BitwiseNot:carried": bitwise_not, "MatMul:carried": matmul,
    "Gemm:carried": gemm, "Einsum:carried": einsum, "PRelu:carried": prelu, "Shrink:carried": shrink,
}  # fmt: skip
