"""A convolution of 8-bit codes with int8 weights, ranges calibrated, in one, two or three dimensions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graphpress.backends.fx.kernels.base import (
    INTEGERS,
    LIBRARY,
    NARROW,
    Kernel,
    packed,
    product_refusal,
    requantize,
    require,
    traced,
    unsigned,
    weight_refusal,
)

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_LAYOUT = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}


def available(codes: Tensor, scale: Tensor, zero_point: Tensor | None = None, device: str = "cpu") -> str | None:
    """Why no integer kernel convolves with this weight on this device; None where one does.

    Args:
        codes: int8, [out, in / groups, *kernel], of one to three dimensions.
        scale: Float32, one element or [out].
        zero_point: Of the weight.
    """
    refused = weight_refusal(codes, scale, zero_point, (3, 4, 5))
    return refused or product_refusal(probe, codes, torch.device(device).type)


@functools.cache
def probe(device: str, largest: int = 128) -> str | None:
    """Run small convolutions of extreme codes on this kind of device: None, or why they are not exact there.

    Args:
        device: ``cpu``.
        largest: Magnitude of the weight's codes.
    """
    if device != "cpu":
        return f"torch has no convolution of integers on {device}"
    x = torch.full((1, 16, 6, 6), 255, dtype=torch.uint8)
    try:
        for groups in (1, 16):
            weight = torch.full((16, 16 // groups, 3, 3), min(largest, 127), dtype=torch.int8)
            weight[::2] = -largest
            shape = ([1, 1], [1, 1], [1, 1], groups)
            y = _run(x, arguments(1.0, 3, weight, torch.ones(16), None, *shape, None, torch.float32, False))
            exact = F.conv2d(x.double() - 3.0, weight.double(), padding=1, groups=groups)
            if not torch.equal(y.double(), exact):
                return (
                    f"convolutions of 8-bit integers overflow on this processor where weights are larger than {NARROW}"
                )
    except (RuntimeError, AttributeError) as e:
        return f"torch refuses convolutions of integers here: {str(e).splitlines()[0]}"
    return None


class StaticInt8Conv(Kernel):
    """Codes in (floats are quantized first), codes or float32 out; images come out channels last.

    Args:
        codes: Weight, int8, [out, in / groups, *kernel].
        scale: Float32, one element or [out].
        bias: Float32, [out], or None.
        zero_point: Of the weight: 0, or absent.
        relu: Negative results become 0.
        stride, dilation: One, or one for each dimension.
        padding: One, one for each dimension, or those before all dimensions and then those behind, as ONNX has them.
        groups: As in torch.
        input_scale, input_zero, input_dtype: Of the activations.
        output_scale, output_zero, output_dtype: Of the codes that come out; None: float32 comes out.

    Raises:
        Unsupported: The weight is not of this form.
    """

    probed = staticmethod(probe)

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor | None = None,
        zero_point: Tensor | None = None,
        relu: bool = False,
        *,
        stride: Sequence[int] = (1,),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
        groups: int = 1,
        input_scale: float,
        input_zero: int,
        input_dtype: torch.dtype = torch.uint8,
        output_scale: float | None = None,
        output_zero: int | None = None,
        output_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require(weight_refusal(codes, scale, zero_point, (3, 4, 5)))
        self.relu, self.groups = relu, groups
        self.dims = codes.dim() - 2
        self.stride, self.dilation = (self._each(v) for v in (stride, dilation))
        self.padding, self.margins = self._padding(padding)
        self.input_dtype, self.output_dtype = input_dtype, output_dtype or torch.float32
        self.register_buffer("weight", codes.contiguous())
        self._floats("weight_scale", scale.reshape(-1).expand(codes.shape[0]))
        self._floats("bias", bias)
        self._floats("input_scale", input_scale)
        self._integer("input_zero", input_zero)
        self._floats("output_scale", output_scale)
        self._integer("output_zero", output_zero if output_scale is None else output_zero or 0)

    def _each(self, values: Sequence[int]) -> list[int]:
        return list(values) * self.dims if len(values) == 1 else list(values)

    def _padding(self, values: Sequence[int]) -> tuple[list[int], list[int]]:
        """(what the convolution pads on both sides, what F.pad puts around first)."""
        each = self._each(values)
        before, behind = each[: self.dims], each[self.dims :]
        if not behind or before == behind:
            return before, []
        return [0] * self.dims, [n for pair in zip(before[::-1], behind[::-1], strict=True) for n in pair]

    def refusal(self, device: str) -> str | None:
        return product_refusal(probe, self.weight, device)

    def forward(self, x: Tensor) -> Tensor:
        if not self.exact(x) or torch.compiler.is_exporting():
            return self.reference(x)
        if not traced(x):
            codes, _ = unsigned(self._codes(x), 0)
            return _run(self._padded(codes) if self.margins else codes, self.planned(self._arguments))
        codes, zero = unsigned(self._codes(x), self.input_zero)
        return torch.ops.graphpress.int8_conv(
            self._padded(codes) if self.margins else codes, self.input_scale, zero, self.weight, self.weight_scale,
            self.bias, self.stride, self.padding, self.dilation, self.groups, self.output_scale, self.output_zero,
            self.output_dtype, self.relu,
        )  # fmt: skip

    def _arguments(self) -> tuple[Any, ...]:
        zero = self.input_zero.item() + (128 if self.input_dtype == torch.int8 else 0)
        quantizer = None if self.output_scale is None else (self.output_scale.item(), self.output_zero.item())
        shape = (self.stride, self.padding, self.dilation, self.groups)
        return arguments(
            self.input_scale.item(), zero, self.weight, self.weight_scale, self.bias, *shape, quantizer,
            self.output_dtype, self.relu,
        )  # fmt: skip

    def reference(self, x: Tensor) -> Tensor:
        """In float64, which holds every sum."""
        x = F.pad(self._codes(x).double() - self.input_zero, self.margins)
        sums = _CONV[self.dims](
            x, self.weight.double(), None, self.stride, self.padding, self.dilation, self.groups
        ).float()
        each = (-1, *[1] * self.dims)
        y = sums * (self.input_scale * self.weight_scale).reshape(each)
        y = y if self.bias is None else y + self.bias.reshape(each)
        y = y.relu() if self.relu else y
        return y if self.output_scale is None else requantize(y, self.output_scale, self.output_zero, self.output_dtype)

    def _codes(self, x: Tensor) -> Tensor:
        if x.dtype in INTEGERS:
            return x
        return requantize(x.float(), self.input_scale, self.input_zero, self.input_dtype)

    def _padded(self, codes: Tensor) -> Tensor:
        """With the code of 0 around; chosen from two, for F.pad takes no tensor."""
        zero = unsigned(torch.zeros((), dtype=self.input_dtype, device=codes.device), self.input_zero)[1]
        inside = F.pad(torch.ones_like(codes, dtype=torch.bool), self.margins)
        return torch.where(inside, F.pad(codes, self.margins), zero.to(torch.uint8))


def arguments(
    x_scale: float,
    x_zero: int,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    quantizer: tuple[float, int] | None,
    dtype: torch.dtype,
    relu: bool,
) -> tuple[Any, ...]:
    """What oneDNN's convolution takes behind its input, with the weight packed."""
    late = relu and weight.dim() == 5  # torch has no ReLU behind three dimensions
    shape = (stride, padding, dilation, groups)
    layout = torch.ops.onednn.qconv_prepack(weight, weight_scale, x_scale, x_zero, *shape, None)
    zero = torch.zeros(len(weight_scale), dtype=torch.int32)
    post = "relu" if relu and not late else "none"
    return (
        (x_scale, x_zero, layout, weight_scale, zero, bias, *shape, *(quantizer or (1.0, 0)), dtype, post, [], ""),
        (quantizer[1] if quantizer else 0) if late else None,
        _LAYOUT[weight.dim() - 2],
    )


def _run(x: Tensor, planned: tuple[Any, ...]) -> Tensor:
    behind, floor, layout = planned
    y = torch.ops.onednn.qconv_pointwise.default(x, *behind)
    y = y if floor is None else y.clamp_min_(floor)
    return y.contiguous(memory_format=layout)


def _int8_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    out_scale: Tensor | None,
    out_zero: Tensor | None,
    dtype: torch.dtype,
    relu: bool,
) -> Tensor:
    scale, zero, shape = x_scale.item(), x_zero.item(), (stride, padding, dilation, groups)
    quantizer = None if out_scale is None or out_zero is None else (out_scale.item(), out_zero.item())
    rest = (quantizer, dtype, relu)
    tensors = (weight, weight_scale) if bias is None else (weight, weight_scale, bias)
    key = ("conv", scale, zero, *map(tuple, shape[:3]), groups, *rest)
    return _run(x, packed(key, lambda: arguments(scale, zero, weight, weight_scale, bias, *shape, *rest), *tensors))


def _shape(x: Tensor, x_scale: Tensor, x_zero: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    dims = weight.dim() - 2
    _, _, stride, padding, dilation, _, _, _, dtype, _ = rest
    sizes = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    return torch.empty((x.shape[0], weight.shape[0], *sizes), dtype=dtype, device=x.device, memory_format=_LAYOUT[dims])


LIBRARY.define(
    "int8_conv(Tensor x, Tensor x_scale, Tensor x_zero, Tensor weight, Tensor weight_scale, Tensor? bias, int[] stride,"
    " int[] padding, int[] dilation, int groups, Tensor? out_scale, Tensor? out_zero, ScalarType dtype, bool relu)"
    " -> Tensor"
)
LIBRARY.impl("int8_conv", _int8_conv, "CPU")
torch.library.register_fake("graphpress::int8_conv", _shape, lib=LIBRARY)
