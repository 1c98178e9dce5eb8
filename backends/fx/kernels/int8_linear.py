"""x W^T + b with int8 weights and 8-bit activations: ranges found at run time, or calibrated."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from graphpress.backends.fx.kernels import activations
from graphpress.backends.fx.kernels.base import (
    INTEGERS,
    LIBRARY,
    NARROW,
    Kernel,
    integer_products,
    packed,
    product_refusal,
    requantize,
    require,
    traced,
    unsigned,
    weight_refusal,
)


def available(codes: Tensor, scale: Tensor, zero_point: Tensor | None = None, device: str = "cpu") -> str | None:
    """Why no integer kernel multiplies by this weight on this device; None where one does.

    Args:
        codes: int8, [out, in].
        scale: Float32, one element or [out].
        zero_point: Of the weight.
    """
    refused = weight_refusal(codes, scale, zero_point, (2,))
    return refused or product_refusal(probe, codes, torch.device(device).type)


@functools.cache
def probe(device: str, largest: int = 128) -> str | None:
    """Run a small product of extreme codes on this kind of device: None, or why it is not computed exactly there.

    Args:
        device: ``cpu`` or ``cuda``.
        largest: Magnitude of the weight's codes.
    """
    if device not in ("cpu", "cuda"):
        return f"torch has no product of integers on {device}"
    if device == "cuda" and not torch.cuda.is_available():
        return "torch sees no CUDA device here"
    try:
        return _probe(device, largest)
    except (RuntimeError, AttributeError) as e:
        return f"torch refuses products of integers here: {str(e).splitlines()[0]}"


def _probe(device: str, largest: int) -> str | None:
    # Neighbours of equal sign overflow where a processor adds pairs of products in 16 bits.
    x = torch.full((32, 64), 255, dtype=torch.uint8, device=device)
    weight = torch.full((16, 64), min(largest, 127), dtype=torch.int8, device=device)
    weight[::2] = -largest
    sums, exact = weight.sum(1, dtype=torch.int32), (x.double() - 3.0) @ weight.double().t()
    made = [integer_products(x.bitwise_xor(128).view(torch.int8), weight) - (3 - 128) * sums]
    if device == "cpu":
        made += [product(part, 1.0, 3, weight, sums, torch.ones(16), None) for part in (x, x[:1])]
    return (
        None
        if all(torch.equal(m.double(), exact[: len(m)]) for m in made)
        else f"products of 8-bit integers overflow on this processor where weights are larger than {NARROW}"
    )


class Int8Linear(Kernel):
    """What a dynamic and a static product have in common.

    Args:
        codes: Weight, int8, [out, in].
        scale: Float32, one element or [out].
        bias: Float32, [out], or None.
        zero_point: Of the weight: 0, or absent.
        relu: Negative results become 0.

    Raises:
        Unsupported: The weight is not of this form.
    """

    probed = staticmethod(probe)

    def __init__(
        self, codes: Tensor, scale: Tensor, bias: Tensor | None, zero_point: Tensor | None, relu: bool
    ) -> None:
        super().__init__()
        require(weight_refusal(codes, scale, zero_point, (2,)))
        self.relu = relu
        self.register_buffer("weight", codes.contiguous())
        self._floats("weight_scale", scale.reshape(-1))
        self._floats("bias", bias)
        self.register_buffer("weight_sum", codes.sum(1, dtype=torch.int32))  # what a zero point of x is multiplied by

    def refusal(self, device: str) -> str | None:
        return product_refusal(probe, self.weight, device)

    def _sums(self, x: Tensor, zero: Tensor | int) -> Tensor:
        """(x - zero) W^T of uint8 codes: int32 by torch's own product, as CUDA and an exported program have it."""
        signed = x.bitwise_xor(128).view(torch.int8).reshape(-1, x.shape[-1])
        sums = integer_products(signed, self.weight) - (zero - 128) * self.weight_sum
        return sums.reshape(*x.shape[:-1], self.weight.shape[0])

    def _exact_sums(self, x: Tensor, zero: Tensor | int) -> Tensor:
        """The same on any device: float64 holds every sum."""
        return (x.double() - zero) @ self.weight.double().t()

    def _floats_of(self, sums: Tensor, scale: Tensor | float) -> Tensor:
        y = sums.float() * (scale * self.weight_scale)
        y = y if self.bias is None else y + self.bias
        return y.relu() if self.relu else y


class DynamicInt8Linear(Int8Linear):
    """Activations quantized as they come: float in, the same type out.

    Args:
        codes, scale, bias, zero_point, relu: As in :class:`Int8Linear`.
        per_token: One symmetric int8 scale for each row, as DynamicQuantizeToken; else one uint8 scale and zero point
            for the tensor, as DynamicQuantizeLinear.
    """

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor | None = None,
        zero_point: Tensor | None = None,
        relu: bool = False,
        per_token: bool = False,
    ) -> None:
        super().__init__(codes, scale, bias, zero_point, relu)
        self.per_token = per_token
        self.quantize = activations.quantize_token if per_token else activations.quantize_tensor
        self.register_buffer("one", torch.ones(()), persistent=False)
        self.register_buffer("middle", torch.tensor(128, dtype=torch.int32), persistent=False)

    def forward(self, x: Tensor, quantized: activations.Quantized | None = None) -> Tensor:
        """The product; ``quantized`` is what ``activations.quantize_...`` gave of ``x``, where others read it too."""
        codes, scale, zero = quantized or self.quantize(x)
        if not self.exact(x):
            y = self._floats_of(self._exact_sums(codes, zero), scale)
        elif x.device.type == "cuda" or torch.compiler.is_exporting():
            y = self._floats_of(self._sums(codes, zero), scale)
        elif self.per_token:
            y = self._token(codes, scale)
        elif traced(x):
            y = self._traced(codes, scale, zero, self.bias, self.relu)
        else:
            parts = (self.weight, self.weight_sum, self.weight_scale, self.bias)
            y = product(codes, scale, zero, *parts, relu=self.relu)
        return y.to(x.dtype)

    def reference(self, x: Tensor) -> Tensor:
        codes, scale, *zero = activations.by_token(x.float()) if self.per_token else activations.by_tensor(x.float())
        return self._floats_of(self._exact_sums(codes, *(zero or [self.middle])), scale).to(x.dtype)

    def _token(self, codes: Tensor, scale: Tensor) -> Tensor:
        if traced(codes):
            y = self._traced(codes, self.one, self.middle, None, False)
        else:
            y = product(codes, 1.0, activations.MIDDLE, self.weight, self.weight_sum, self.weight_scale, None)
        y.mul_(scale)
        if self.bias is not None:
            y.add_(self.bias)
        return y.relu_() if self.relu else y

    def _traced(self, codes: Tensor, scale: Tensor, zero: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        return torch.ops.graphpress.int8_linear(
            codes, scale, zero, self.weight, self.weight_sum, self.weight_scale, bias, None, None, torch.float32, relu
        )


class StaticInt8Linear(Int8Linear):
    """Activations with calibrated ranges: codes in (floats are quantized first), codes or float32 out.

    Args:
        codes, scale, bias, zero_point, relu: As in :class:`Int8Linear`.
        input_scale, input_zero: Of the activations.
        input_dtype: uint8 or int8.
        output_scale, output_zero, output_dtype: Of the codes that come out; None: float32 comes out.
    """

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor | None = None,
        zero_point: Tensor | None = None,
        relu: bool = False,
        *,
        input_scale: float,
        input_zero: int,
        input_dtype: torch.dtype = torch.uint8,
        output_scale: float | None = None,
        output_zero: int | None = None,
        output_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(codes, scale, bias, zero_point, relu)
        self.input_dtype, self.output_dtype = input_dtype, output_dtype or torch.float32
        self._floats("input_scale", input_scale)
        self._integer("input_zero", input_zero)
        self._floats("output_scale", output_scale)
        self._integer("output_zero", output_zero if output_scale is None else output_zero or 0)

    def forward(self, x: Tensor) -> Tensor:
        if not self.exact(x):
            return self.reference(x)
        if x.device.type == "cpu" and not traced(x):
            codes, _ = unsigned(self._codes(x), 0)
            scale, zero, *behind = self.planned(self._numbers)
            return product(codes, scale, zero, self.weight, self.weight_sum, self.weight_scale, self.bias, *behind)
        codes, zero = unsigned(self._codes(x), self.input_zero)
        if x.device.type == "cuda" or torch.compiler.is_exporting():
            return self._out(self._floats_of(self._sums(codes, zero), self.input_scale))
        return torch.ops.graphpress.int8_linear(
            codes, self.input_scale, zero, self.weight, self.weight_sum, self.weight_scale, self.bias,
            self.output_scale, self.output_zero, self.output_dtype, self.relu,
        )  # fmt: skip

    def _numbers(self) -> tuple[Any, ...]:
        zero = self.input_zero.item() + (128 if self.input_dtype == torch.int8 else 0)
        quantizer = None if self.output_scale is None else (self.output_scale.item(), self.output_zero.item())
        return self.input_scale.item(), zero, quantizer, self.output_dtype, self.relu

    def reference(self, x: Tensor) -> Tensor:
        sums = self._exact_sums(self._codes(x), self.input_zero)
        return self._out(self._floats_of(sums, self.input_scale))

    def _codes(self, x: Tensor) -> Tensor:
        if x.dtype in INTEGERS:
            return x
        return requantize(x.float(), self.input_scale, self.input_zero, self.input_dtype)

    def _out(self, y: Tensor) -> Tensor:
        if self.output_scale is None:
            return y
        return requantize(y, self.output_scale, self.output_zero, self.output_dtype)


@functools.cache
def unsigned_products() -> bool:
    """Whether torch._int_mm takes uint8 on the CPU, which is twice as fast for one row: from torch 2.12 on."""
    try:
        torch._int_mm(torch.ones(1, 8, dtype=torch.uint8), torch.ones(8, 8, dtype=torch.int8))
    except RuntimeError:
        return False
    return True


def product(
    x: Tensor,
    x_scale: float,
    x_zero: int,
    weight: Tensor,
    weight_sum: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    quantizer: tuple[float, int] | None = None,
    dtype: torch.dtype = torch.float32,
    relu: bool = False,
) -> Tensor:
    """uint8 codes times int8 weights on the CPU, exact in the sums, with bias, ReLU and quantization behind."""
    if x.numel() == weight.shape[1]:  # one row: oneDNN reads weights as they lie at twice the speed of its own layout
        x, zero = (x, x_zero) if unsigned_products() else (x.bitwise_xor(128).view(torch.int8), x_zero - 128)
        sums = torch._int_mm(x.reshape(1, -1), weight.t()).sub_(weight_sum, alpha=zero)
        y = torch.mul(sums, weight_scale * x_scale).reshape(*x.shape[:-1], -1)
        y = y if bias is None else y.add_(bias)
        y = y.relu_() if relu else y
        return y if quantizer is None else requantize(y, *quantizer, dtype)
    ops = torch.ops.onednn
    layout = packed("linear", lambda: ops.qlinear_prepack(weight, None), weight)
    return ops.qlinear_pointwise.default(
        x, x_scale, x_zero, layout, weight_scale, _NO_ZERO, bias, *(quantizer or (1.0, 0)), dtype, _POST[relu], [], ""
    )


def _int8_linear(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    weight: Tensor,
    weight_sum: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    out_scale: Tensor | None,
    out_zero: Tensor | None,
    dtype: torch.dtype,
    relu: bool,
) -> Tensor:
    quantizer = None if out_scale is None or out_zero is None else (out_scale.item(), out_zero.item())
    return product(x, x_scale.item(), x_zero.item(), weight, weight_sum, weight_scale, bias, quantizer, dtype, relu)


def _shape(x: Tensor, x_scale: Tensor, x_zero: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=rest[5])


_NO_ZERO, _POST = torch.zeros(1, dtype=torch.int32), {False: "none", True: "relu"}
LIBRARY.define(
    "int8_linear(Tensor x, Tensor x_scale, Tensor x_zero, Tensor weight, Tensor weight_sum, Tensor weight_scale,"
    " Tensor? bias, Tensor? out_scale, Tensor? out_zero, ScalarType dtype, bool relu) -> Tensor"
)
LIBRARY.impl("int8_linear", _int8_linear, "CPU")
torch.library.register_fake("graphpress::int8_linear", _shape, lib=LIBRARY)
