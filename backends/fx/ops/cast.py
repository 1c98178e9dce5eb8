"""From one element type to another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch

from graphpress.backends.fx import dtypes
from graphpress.backends.fx.operands import Tensor

_FLOAT8 = {
    "FLOAT8E4M3FN": 448.0,
    "FLOAT8E4M3FNUZ": 240.0,
    "FLOAT8E5M2": 57344.0,
    "FLOAT8E5M2FNUZ": 57344.0,
}  # fmt: skip - the largest finite numbers
_SMALL = ("INT4", "UINT4", "INT2", "UINT2", "FLOAT4E2M1")


def cast(
    x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up", in_types: tuple[str | None, ...] = ()
) -> Tensor:
    """Floats are cut off at the point, integers wrap; 8-bit and 4-bit floats round to nearest and saturate if asked."""
    return convert(x, in_types[0], ir.DataType(to).name, saturate=bool(saturate), round_mode=round_mode)


def cast_1(x: Tensor, *, to: str, in_types: tuple[str | None, ...] = ()) -> Tensor:
    """Opsets 1 to 5 name the type."""
    return convert(x, in_types[0], to)


def cast_like(
    x: Tensor, like: Tensor, *, saturate: int = 1, round_mode: str = "up", in_types: tuple[str | None, ...] = ()
) -> Tensor:
    if in_types[1] is None:
        return x.to(like.dtype)
    return convert(x, in_types[0], in_types[1], saturate=bool(saturate), round_mode=round_mode)


def convert(x: Tensor, source: str | None, to: str, *, saturate: bool = True, round_mode: str = "up") -> Tensor:
    """``x`` of the ONNX type ``source`` as the type ``to``, each in what carries it."""
    if source == to:
        return x
    if to == "BOOL":
        return (x.float() if x.element_size() == 1 and x.is_floating_point() else x).to(torch.bool)
    if to in _FLOAT8:
        return float8(_number(x, source), to, saturate)
    if to == "FLOAT8E8M0":
        return power_of_two(_number(x, source).float(), round_mode, saturate)
    if to == "FLOAT4E2M1":
        return float4(_single(_number(x, source)))
    target = dtypes.torch_dtype(to)
    if target.is_floating_point:
        return _number(x, source).to(target)
    if dtypes.carried(to):
        return _carried(x, to)
    if x.is_floating_point() and target in (torch.int8, torch.uint8, torch.int16):
        return x.to(torch.int32).to(target)  # out of range, torch leaves a direct conversion undefined
    return x.to(target)


def largest(name: str) -> float:
    """The largest finite number of a float type of 8 or 4 bits."""
    return 6.0 if name == "FLOAT4E2M1" else _FLOAT8[name]


def _number(x: Tensor, source: str | None) -> Tensor:
    """``x`` by its value: UINT64 is carried by its bits."""
    if source != "UINT64":
        return x
    wide = x.double()
    return torch.where(x < 0, wide + 2.0**64, wide)


def _carried(x: Tensor, to: str) -> Tensor:
    """An integer type that torch holds in a wider one."""
    low, high = dtypes.integer_range(to)
    carrier = dtypes.torch_dtype(to)
    if to == "UINT64":
        if not x.is_floating_point():
            return x.to(carrier)
        return torch.where(x.double() >= 2.0**63, (x.double() - 2.0**64).to(carrier), x.to(carrier))
    small = x.is_floating_point() and high < 2**16  # numpy converts to these by way of int32
    return ((x.to(torch.int32 if small else torch.int64) - low) & (high - low)).add(low).to(carrier)


def _single(x: Tensor) -> Tensor:
    """float32, of which a last rounding to less than 22 bits makes what it makes of ``x``: inexact numbers are odd."""
    y = x.float()
    if x.dtype != torch.float64:
        return y
    back = y.detach().double()
    even = (y.detach().view(torch.int32) & 1) == 0
    odd = torch.nextafter(y.detach(), torch.where(x > back, torch.inf, -torch.inf).float())
    return torch.where(even & (x != back) & y.isfinite(), y + (odd - y).detach(), y)


def float8(x: Tensor, to: str, saturate: bool) -> Tensor:
    """To nearest, halves to even. What is too large becomes the largest number, or the infinity or NaN of the type."""
    wide, most = _single(x), _FLOAT8[to]
    if saturate:
        wide = wide.clamp(-most, most)
    elif to == "FLOAT8E4M3FN":  # which torch saturates: half a step above the largest number it is one no more
        wide = torch.where(wide.abs() > most + 16.0, torch.nan, wide)
    return wide.to(dtypes.torch_dtype(to))


def float4(x: Tensor) -> Tensor:
    """0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives: to nearest, halves to even, saturating; in float32."""
    size = x.abs().clamp(max=6.0)
    step = torch.where(size < 2.0, 0.5, torch.where(size < 4.0, 1.0, 2.0))
    return torch.copysign(torch.round(size / step) * step, x)


def power_of_two(x: Tensor, round_mode: str, saturate: bool) -> Tensor:
    """8 bits of exponent, no sign, no mantissa; as ONNX's own ``to_float8e8m0`` has it, subnormal numbers too."""
    bits = x.abs().contiguous().view(torch.int32)
    exponent, mantissa = bits >> 23, bits & 0x7FFFFF
    half = torch.where(exponent > 0, mantissa >= 0x400000, mantissa > 0x400000)
    up = {"up": mantissa > 0, "down": mantissa < 0, "nearest": half}[round_mode]
    code = torch.clamp(exponent + up.to(torch.int32), max=254 if saturate else 255)
    code = torch.where(exponent == 255, exponent, code)  # infinities and NaN
    return code.to(torch.uint8).view(torch.float8_e8m0fnu)


# -- bits --------------------------------------------------------------------------------------------------------------

_FLOAT4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_STORED = {"UINT16": torch.int16, "UINT32": torch.int32}  # of their own size


def bit_cast(x: Tensor, *, to: int, in_types: tuple[str | None, ...] = ()) -> Tensor:
    """The same bits as another type of the same size."""
    source, name = in_types[0] or "", ir.DataType(to).name
    if source == name:
        return x
    if source in _SMALL:
        return _nibble(x, source, name)
    y = x.to(_STORED.get(source, x.dtype)).view(_STORED.get(name, dtypes.torch_dtype(name)))
    return _carried(y, name) if name in _STORED else y


def _nibble(x: Tensor, source: str, name: str) -> Tensor:
    """Between types of 4 bits, or of 2."""
    code = _float4_code(x) if source == "FLOAT4E2M1" else x
    if name != "FLOAT4E2M1":
        return _carried(code, name)
    numbers = torch.tensor((*_FLOAT4, *(-v for v in _FLOAT4)), device=x.device)
    return numbers[(code & 15).to(torch.int32)]


def _float4_code(x: Tensor) -> Tensor:
    size = torch.bucketize(x.abs(), torch.tensor(_FLOAT4, device=x.device))
    return size + 8 * torch.signbit(x).to(size.dtype)


OPS: dict[str, Callable[..., Any]] = {
    "Cast": cast_1, "Cast@6": cast, "CastLike": cast_like, "BitCast": bit_cast,
}  # fmt: skip
