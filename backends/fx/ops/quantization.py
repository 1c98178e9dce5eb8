"""Quantize and dequantize, exactly and with gradients straight through, and products of integers.

``STRAIGHT_THROUGH`` has the forms for training: codes are floats of the same values, rounding passes gradients on. Q
and DQ together then have the gradients of LSQ (arXiv:1902.08153, eq. 3) for the scale and of LSQ+ (arXiv:2004.09576,
sec. 3.2) for the zero point: no pair has to be found and fused for it. DQ and the products have one form for both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import onnx_ir as ir
import torch

from graphpress.backends.fx import dtypes
from graphpress.backends.fx.operands import Tensor
from graphpress.backends.fx.ops import cast, convolution
from graphpress.errors import Unsupported
from graphpress.ops import dynamic_quantize_token

Types: TypeAlias = tuple[str | None, ...]
_CODES = (torch.float32, torch.float64)  # what codes are in where they pass gradients on
_EXACT = 2**24 // 255**2  # products of 8-bit integers whose sum float32 holds exactly

# -- one scale for the tensor, for each index of an axis, or for each block along it -----------------------------------


def spread(parameter: Tensor, x: Tensor, axis: int, block_size: int) -> Tensor:
    """A scale or zero point in a shape that broadcasts against ``x``."""
    if parameter.dim() == 0:
        return parameter
    if block_size:
        return parameter.repeat_interleave(block_size, axis).narrow(axis, 0, x.shape[axis])
    if parameter.dim() > 1:
        raise Unsupported("scales of more than one axis need a block_size")
    if parameter.shape[0] == 1:
        return parameter.reshape(())
    shape = [1] * x.dim()
    shape[axis] = -1
    return parameter.reshape(shape)


# -- quantize ----------------------------------------------------------------------------------------------------------


def quantize_linear(
    x: Tensor, scale: Tensor, zero_point: Tensor | None = None,
    *, axis: int = 1, block_size: int = 0, output_dtype: int = 0, precision: int = 0, saturate: int = 1,
    in_types: Types = (), opset: int = 23,
) -> Tensor:  # fmt: skip
    """Rounded to nearest, halves to even, then moved by the zero point and saturated."""
    name = _stored(in_types, output_dtype)
    ratio = _ratio(x, spread(scale, x, axis, block_size), precision, opset)
    if "FLOAT" in name:  # whose zero point is 0
        return cast.convert(ratio, None, name, saturate=bool(saturate))
    return codes(ratio, None if zero_point is None else spread(zero_point, x, axis, block_size), name)


def _stored(in_types: Types, output_dtype: int) -> str:
    """The type that a QuantizeLinear gives."""
    if len(in_types) > 2 and in_types[2] is not None:
        return in_types[2]
    return ir.DataType(output_dtype).name if output_dtype else "UINT8"


def _ratio(x: Tensor, scale: Tensor, precision: int, opset: int) -> Tensor:
    """``x`` in scales, divided in the precision of the scale if none is given; before opset 23 in float32 at least."""
    if precision:
        dtype = dtypes.torch_dtype(ir.DataType(precision).name)
    else:
        dtype = scale.dtype if opset >= 23 or scale.dtype in _CODES else torch.float32
    return x.to(dtype) / scale.to(dtype)


def codes(ratio: Tensor, zero: Tensor | None, name: str) -> Tensor:
    """Integers of a type, in what carries it; ``ratio`` is overwritten."""
    if name != "UINT8":
        return _rounded(ratio, zero, name).to(dtypes.torch_dtype(name))
    # torch converts to int8 eight times as fast as to uint8
    return _rounded(ratio, zero, name, -128.0).to(torch.int8).view(torch.uint8).bitwise_xor_(128)


def _rounded(ratio: Tensor, zero: Tensor | None, name: str, offset: float = 0.0) -> Tensor:
    low, high = dtypes.integer_range(name)
    found = _wide(ratio.round_())
    if zero is not None or offset:
        found = found.add_(offset if zero is None else zero.to(found.dtype) + offset)
    return found.clamp_(low + offset, high + offset)


def _wide(x: Tensor) -> Tensor:
    """In a type that holds all codes."""
    return x if x.dtype in _CODES else x.to(torch.float32)


def quantize_straight(
    x: Tensor, scale: Tensor, zero_point: Tensor | None = None,
    *, axis: int = 1, block_size: int = 0, output_dtype: int = 0, precision: int = 0, saturate: int = 1,
    in_types: Types = (), opset: int = 23,
) -> Tensor:  # fmt: skip
    """Codes as floats; what is in the range passes gradients on as if it were not rounded, what is not passes none."""
    name = _stored(in_types, output_dtype)
    ratio = _ratio(x, spread(scale, x, axis, block_size), precision, opset)
    if "FLOAT" in name:
        exact = cast.convert(ratio.detach(), None, name, saturate=bool(saturate))
        most = cast.largest(name)
        return _passing(_wide(ratio), _wide(exact), -most, most)
    zero = None if zero_point is None else spread(integral(zero_point, name), x, axis, block_size)
    return straight_codes(ratio, zero, name)


def straight_codes(ratio: Tensor, zero: Tensor | None, name: str) -> Tensor:
    """The codes of integers as floats."""
    exact = _rounded(ratio.detach().clone(), None if zero is None else zero.detach(), name)
    moved = _wide(ratio) if zero is None else _wide(ratio) + zero
    return _passing(moved, exact, *dtypes.integer_range(name))


def _passing(x: Tensor, exact: Tensor, low: float, high: float) -> Tensor:
    """The values of ``exact``, to the bit, with the gradient of ``x`` between the limits."""
    x = torch.where((x > low) & (x < high), x, exact)
    return x + (exact - x).detach()  # no rounding: they lie within a factor of two, or exact is 0


def integral(zero_point: Tensor, name: str) -> Tensor:
    """A zero point, perhaps a learned one, as a float on an integer of its range."""
    if not zero_point.is_floating_point():
        return zero_point.to(torch.float32)
    inside = zero_point.clamp(*dtypes.integer_range(name))
    return inside + (inside.round() - inside).detach()


# -- dequantize --------------------------------------------------------------------------------------------------------


def dequantize_linear(
    x: Tensor, scale: Tensor, zero_point: Tensor | None = None,
    *, axis: int = 1, block_size: int = 0, output_dtype: int = 0, in_types: Types = (),
) -> Tensor:  # fmt: skip
    """Computed in float32 at least; of codes that are floats too."""
    factor = _wide(spread(scale, x, axis, block_size))
    zero = _shift(x, zero_point, in_types[0] or "")
    if zero is not None:
        zero = spread(zero, x, axis, block_size)
    if x.dtype in _CODES:
        y = (x if zero is None else x - zero) * factor
    elif zero is None or x.dtype != torch.int32 or zero.is_floating_point():
        y = x.to(factor.dtype) if zero is None else x.to(factor.dtype).sub_(zero.to(factor.dtype))
        y = y.mul_(factor)
    else:
        y = (x - zero.to(x.dtype)).to(factor.dtype).mul_(factor)
    return y.to(dtypes.torch_dtype(ir.DataType(output_dtype).name) if output_dtype else scale.dtype)


def _shift(x: Tensor, zero_point: Tensor | None, name: str) -> Tensor | None:
    """The zero point where there is one; that of floats is 0."""
    if zero_point is None or "FLOAT" in name:
        return None
    return integral(zero_point, name) if zero_point.is_floating_point() or x.dtype in _CODES else zero_point


# -- by the range of what comes ----------------------------------------------------------------------------------------


def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 by the range of the whole tensor, 0 included; a tensor of zeros has scale 1, as ONNX Runtime gives it."""
    scale, zero = _dynamic(x)
    return codes(x / scale, zero, "UINT8"), scale, zero.to(torch.uint8)


def _dynamic(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point."""
    low, high = torch.aminmax(x)
    low = low.clamp(max=0.0)
    scale = (high.clamp(min=0.0) - low) / 255.0
    scale = torch.where(scale == 0.0, 1.0, scale)
    return scale, (-low / scale).round().clamp(0.0, 255.0)


def dynamic_quantize_straight(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The range passes no gradient; all of the tensor is inside of it."""
    scale, zero = _dynamic(x.detach())
    ratio = x / scale
    exact = _rounded(ratio.detach().clone(), zero, "UINT8")
    return _passing(ratio + zero, exact, -math.inf, math.inf), scale, zero


def dynamic_quantize_token_straight(x: Tensor, *, bits: int = 8) -> tuple[Tensor, Tensor]:
    """``graphpress::DynamicQuantizeToken``; the range passes no gradient."""
    largest = x.detach().abs().amax(-1, keepdim=True)
    scale = (largest / dynamic_quantize_token.steps(bits)).clamp_min(torch.finfo(torch.float32).tiny)
    ratio = x / scale
    return ratio + (ratio.round().clamp_max(2 ** (bits - 1) - 1) - ratio).detach(), scale


# -- products of integers ----------------------------------------------------------------------------------------------


def matmul_integer(a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
    dtype = _accumulator(a, b, b.shape[-2 if b.dim() > 1 else 0])
    return _summed(torch.matmul(_less(a, a_zero, dtype, -2), _less(b, b_zero, dtype, -1)), a, b)


def conv_integer(
    x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None,
    *, auto_pad: str = "NOTSET", dilations: Sequence[int] | None = None, group: int = 1,
    kernel_shape: Sequence[int] | None = None, pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    """Padding counts as the zero point."""
    dtype = _accumulator(x, w, math.prod(w.shape[1:]))
    sums = convolution.conv(
        _less(x, x_zero, dtype), _less(w, w_zero, dtype), auto_pad=auto_pad, dilations=dilations, group=group,
        kernel_shape=kernel_shape, pads=pads, strides=strides,
    )  # fmt: skip
    return _summed(sums, x, w)


def qlinear_matmul(
    a: Tensor, a_scale: Tensor, a_zero: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor, y_scale: Tensor,
    y_zero: Tensor, *, in_types: Types = (),
) -> Tensor:  # fmt: skip
    sums = matmul_integer(a, b, a_zero, b_zero)
    if a_scale.dim() == 1 and a_scale.shape[0] > 1:
        a_scale = a_scale.unsqueeze(-1)
    return _requantized(sums, a_scale, b_scale, y_scale, y_zero, in_types[7])


def qlinear_conv(
    x: Tensor, x_scale: Tensor, x_zero: Tensor, w: Tensor, w_scale: Tensor, w_zero: Tensor, y_scale: Tensor,
    y_zero: Tensor, b: Tensor | None = None,
    *, auto_pad: str = "NOTSET", dilations: Sequence[int] | None = None, group: int = 1,
    kernel_shape: Sequence[int] | None = None, pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
    in_types: Types = (),
) -> Tensor:  # fmt: skip
    """The bias is in the unit of the sums."""
    sums = conv_integer(
        x, w, x_zero, w_zero, auto_pad=auto_pad, dilations=dilations, group=group, kernel_shape=kernel_shape,
        pads=pads, strides=strides,
    )  # fmt: skip
    by_channel = (-1, *(1,) * (x.dim() - 2))
    if b is not None:
        sums = sums + b.reshape(by_channel)
    return _requantized(sums, x_scale, w_scale.reshape(by_channel), y_scale, y_zero, in_types[7])


def _accumulator(a: Tensor, b: Tensor, terms: int) -> torch.dtype:
    """A float type that sums so many products exactly: torch's products of floats are its fast ones on every device."""
    small = a.element_size() == b.element_size() == 1 and not (a.is_floating_point() or b.is_floating_point())
    return torch.float32 if small and terms <= _EXACT else torch.float64


def _less(x: Tensor, zero_point: Tensor | None, dtype: torch.dtype, axis: int = 0) -> Tensor:
    """``x`` minus its zero point, which may be one for each index of an axis."""
    wide = x.to(dtype)
    if zero_point is None:
        return wide
    zero = zero_point.to(dtype)
    if zero.dim() == 1 and zero.shape[0] > 1:
        shape = [1] * x.dim()
        shape[axis] = -1
        zero = zero.reshape(shape)
    return wide - zero


def _summed(sums: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """int32 of sums of integers, which some algorithms of convolution give only nearly; floats of those of floats."""
    if a.is_floating_point() or b.is_floating_point():
        return sums
    return sums.round_().to(torch.int32)


def _requantized(
    sums: Tensor, a_scale: Tensor, b_scale: Tensor, y_scale: Tensor, zero_point: Tensor, name: str | None
) -> Tensor:
    """Codes of sums; they are floats where the sums are, but for the small floats."""
    name = name or "UINT8"
    ratio = sums.float() * (a_scale.float() * b_scale.float() / y_scale.float())
    if "FLOAT" in name:
        return cast.convert(ratio, None, name)
    if sums.is_floating_point():
        return straight_codes(ratio, integral(zero_point, name), name)
    return codes(ratio, zero_point, name)


OPS: dict[str, Callable[..., Any]] = {
    "QuantizeLinear": quantize_linear, "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeLinear": dynamic_quantize_linear, "MatMulInteger": matmul_integer, "ConvInteger": conv_integer,
    "QLinearMatMul": qlinear_matmul, "QLinearConv": qlinear_conv,
}  # fmt: skip

STRAIGHT_THROUGH: dict[str, Callable[..., Any]] = {
    "QuantizeLinear": quantize_straight, "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeLinear": dynamic_quantize_straight, "DynamicQuantizeToken": dynamic_quantize_token_straight,
}  # fmt: skip
