"""Quantize and dequantize, exactly and with gradients straight through, and products of integers.

``STRAIGHT_THROUGH`` has the forms for training: codes are floats of the same values, rounding passes gradients on. Q and
DQ together then have the gradients of LSQ (arXiv:1902.08153, eq. 3) for the scale and of LSQ+ (arXiv:2004.09576, sec.
3.2) for the zero point: no pair has to be found and fused for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch

from graphpress.backends.fx import dtypes
from graphpress.backends.fx.operands import Tensor
from graphpress.backends.fx.ops import cast, convolution

Types = tuple[str | None, ...]

# -- one scale for the tensor, for each index of an axis, or for each block along it ----------------------------------------


def spread(parameter: Tensor, x: Tensor, axis: int, block_size: int) -> Tensor:
    """A scale or zero point in a shape that broadcasts against ``x``."""
    if parameter.dim() == 0 or (parameter.dim() == 1 and parameter.shape[0] == 1 and x.dim() < 2):
        return parameter
    if block_size:
        return parameter.repeat_interleave(block_size, axis).narrow(axis, 0, x.shape[axis])
    if parameter.dim() == 1:
        shape = [1] * x.dim()
        shape[axis] = -1
        return parameter.reshape(shape)
    return parameter


def _stored(in_types: Types, output_dtype: int) -> str:
    """The type that a QuantizeLinear gives."""
    if len(in_types) > 2 and in_types[2] is not None:
        return in_types[2]
    return ir.DataType(output_dtype).name if output_dtype else "UINT8"


def quantize_linear(
    x: Tensor, scale: Tensor, zero_point: Tensor | None = None,
    *, axis: int = 1, block_size: int = 0, output_dtype: int = 0, precision: int = 0, saturate: int = 1,
    in_types: Types = (),
) -> Tensor:  # fmt: skip
    name = _stored(in_types, output_dtype)
    ratio = _ratio(x, spread(scale, x, axis, block_size), precision)
    zero = None if zero_point is None else spread(zero_point, x, axis, block_size)
    if "FLOAT" in name:
        return _small_float(ratio if zero is None else ratio + zero.to(ratio.dtype), name, bool(saturate))
    return codes(ratio, zero, name)


def _ratio(x: Tensor, scale: Tensor, precision: int) -> Tensor:
    dtype = dtypes.torch_dtype(ir.DataType(precision).name) if precision else scale.dtype
    return x.to(dtype) / scale.to(dtype)


def _small_float(ratio: Tensor, name: str, saturate: bool) -> Tensor:
    return cast.float4(ratio.float()) if name == "FLOAT4E2M1" else cast.float8(ratio, name, saturate)


def codes(ratio: Tensor, zero: Tensor | None, name: str) -> Tensor:
    """Rounded, halves to even, moved by the zero point, saturated, in what carries the type."""
    low, high = dtypes.integer_range(name)
    rounded = torch.round(ratio).to(torch.float32 if ratio.dtype != torch.float64 else torch.float64)
    if name == "UINT8":  # torch converts to int8 several times as fast
        moved = rounded - 128.0 if zero is None else rounded + (zero.to(rounded.dtype) - 128.0)
        return moved.clamp(-128.0, 127.0).to(torch.int8).view(torch.uint8).bitwise_xor(128)
    moved = rounded if zero is None else rounded + zero.to(rounded.dtype)
    return moved.clamp(low, high).to(dtypes.torch_dtype(name))


def dequantize_linear(
    x: Tensor, scale: Tensor, zero_point: Tensor | None = None,
    *, axis: int = 1, block_size: int = 0, output_dtype: int = 0,
) -> Tensor:  # fmt: skip
    wide = torch.float64 if scale.dtype == torch.float64 else torch.float32
    if zero_point is not None:
        zero = spread(zero_point, x, axis, block_size)
        narrow = x.is_floating_point() or x.element_size() == 1
        x = x.to(wide) - zero.to(wide) if narrow else x - zero.to(x.dtype)
    y = x.to(wide) * spread(scale, x, axis, block_size).to(wide)
    return y.to(dtypes.torch_dtype(ir.DataType(output_dtype).name) if output_dtype else scale.dtype)


def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 by the range of the whole tensor, 0 included; a tensor of zeros has scale 1, as ONNX Runtime gives it."""
    low, high = torch.aminmax(x)
    low = low.clamp(max=0.0)
    scale = (high.clamp(min=0.0) - low) / 255.0
    scale = torch.where(scale == 0.0, 1.0, scale)
    zero = (-low / scale).round().clamp(0.0, 255.0)
    return codes(x / scale, zero, "UINT8"), scale, zero.to(torch.uint8)


# -- with gradients ----------------------------------------------------------------------------------------------------------


def rounded(x: Tensor) -> Tensor:
    """Round to nearest, halves to even; the gradient passes as if nothing had happened."""
    return x + (torch.round(x) - x).detach()


def _zero(zero_point: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """A zero point, perhaps a learned one, on its integers."""
    low, high = dtypes.integer_range(name)
    return rounded(zero_point.to(dtype).clamp(low, high))


def quantize_straight(
    x: Tensor, scale: Tensor, zero_point: Tensor | None = None,
    *, axis: int = 1, block_size: int = 0, output_dtype: int = 0, precision: int = 0, saturate: int = 1,
    in_types: Types = (),
) -> Tensor:  # fmt: skip
    """Codes as floats."""
    name = _stored(in_types, output_dtype)
    ratio = x / spread(scale, x, axis, block_size)
    if "FLOAT" in name:
        small = _small_float(ratio, name, bool(saturate)).to(ratio.dtype)
        return ratio + (small - ratio).detach()
    low, high = dtypes.integer_range(name)
    moved = rounded(ratio)
    if zero_point is not None:
        moved = moved + spread(_zero(zero_point, name, ratio.dtype), x, axis, block_size)
    return moved.clamp(low, high)


def dequantize_straight(
    x: Tensor, scale: Tensor, zero_point: Tensor | None = None,
    *, axis: int = 1, block_size: int = 0, output_dtype: int = 0, in_types: Types = (),
) -> Tensor:  # fmt: skip
    dtype = scale.dtype
    if zero_point is None or "FLOAT" in (in_types[0] or ""):
        return x.to(dtype) * spread(scale, x, axis, block_size)
    zero = spread(_zero(zero_point, in_types[0] or "INT32", dtype), x, axis, block_size)
    return (x.to(dtype) - zero) * spread(scale, x, axis, block_size)


def dynamic_quantize_straight(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The range passes no gradient."""
    exact, scale, zero = dynamic_quantize_linear(x.detach())
    ratio = x / scale
    return ratio + (exact.to(x.dtype) - ratio).detach(), scale, zero


def dynamic_quantize_token_straight(x: Tensor) -> tuple[Tensor, Tensor]:
    """``graphpress::DynamicQuantizeToken``; the range passes no gradient."""
    largest = x.detach().abs().amax(-1, keepdim=True)
    scale = (largest / 127.0).clamp_min(torch.finfo(torch.float32).tiny)
    return rounded(x / scale), scale


# -- products of integers ---------------------------------------------------------------------------------------------------


def _less(x: Tensor, zero_point: Tensor | None, axis: int = 0) -> Tensor:
    """x minus its zero point, in float64, which holds sums of products of 8-bit integers exactly."""
    wide = x.double()
    if zero_point is None:
        return wide
    zero = zero_point.double()
    if zero.dim() == 1 and zero.shape[0] > 1:
        shape = [1] * x.dim()
        shape[axis] = -1
        zero = zero.reshape(shape)
    return wide - zero


def matmul_integer(a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
    return (_less(a, a_zero, -2) @ _less(b, b_zero, -1)).to(torch.int32)


def conv_integer(
    x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None,
    *, auto_pad: str = "NOTSET", dilations: list[int] | None = None, group: int = 1,
    kernel_shape: list[int] | None = None, pads: list[int] | None = None, strides: list[int] | None = None,
) -> Tensor:  # fmt: skip
    sums = convolution.conv(
        _less(x, x_zero), _less(w, w_zero), auto_pad=auto_pad, dilations=dilations, group=group,
        kernel_shape=kernel_shape, pads=pads, strides=strides,
    )  # fmt: skip
    return sums.to(torch.int32)


def qlinear_matmul(
    a: Tensor, a_scale: Tensor, a_zero: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor, y_scale: Tensor,
    y_zero: Tensor, *, in_types: Types = (),
) -> Tensor:  # fmt: skip
    product = _less(a, a_zero, -2) @ _less(b, b_zero, -1)
    if a_scale.dim() == 1 and a_scale.shape[0] > 1:
        a_scale = a_scale.unsqueeze(-1)
    factor = a_scale.float() * b_scale.float() / y_scale.float()
    ratio = product.float() * factor
    name = in_types[7] or "UINT8"
    return _small_float(ratio, name, True) if "FLOAT" in name else codes(ratio, y_zero, name)


def qlinear_conv(
    x: Tensor, x_scale: Tensor, x_zero: Tensor, w: Tensor, w_scale: Tensor, w_zero: Tensor, y_scale: Tensor,
    y_zero: Tensor, b: Tensor | None = None,
    *, auto_pad: str = "NOTSET", dilations: list[int] | None = None, group: int = 1,
    kernel_shape: list[int] | None = None, pads: list[int] | None = None, strides: list[int] | None = None,
    in_types: Types = (),
) -> Tensor:  # fmt: skip
    sums = convolution.conv(
        _less(x, x_zero), _less(w, w_zero), None if b is None else b.double(), auto_pad=auto_pad, dilations=dilations,
        group=group, kernel_shape=kernel_shape, pads=pads, strides=strides,
    )  # fmt: skip
    factor = (x_scale * w_scale / y_scale).reshape(-1, *(1,) * (x.dim() - 2))
    return codes(sums.float() * factor, y_zero, in_types[7] or "UINT8")


OPS: dict[str, Callable[..., Any]] = {
    "QuantizeLinear": quantize_linear, "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeLinear": dynamic_quantize_linear, "MatMulInteger": matmul_integer, "ConvInteger": conv_integer,
    "QLinearMatMul": qlinear_matmul, "QLinearConv": qlinear_conv,
}  # fmt: skip

STRAIGHT_THROUGH: dict[str, Callable[..., Any]] = {
    "QuantizeLinear": quantize_straight, "DequantizeLinear": dequantize_straight,
    "DynamicQuantizeLinear": dynamic_quantize_straight, "DynamicQuantizeToken": dynamic_quantize_token_straight,
}  # fmt: skip
