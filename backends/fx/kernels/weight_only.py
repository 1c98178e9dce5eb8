"""x W^T + b with weights of 8 or 4 bits and float products."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from graphpress.backends.fx.kernels.base import LIBRARY, Kernel, packed, require, traced

GROUPS = (32, 64, 128, 256)  # of torch's 4-bit kernels
ROWS = {8: 32, 4: 64}  # up to here they are faster than a product with weights restored to bfloat16
_HALF = (torch.bfloat16, torch.float16)
_DEPTH, _WIDTH = 16, 16  # the 8-bit kernel reads past a row of another depth; the 4-bit one packs 16 channels


def available(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    bits: int = 8,
    device: str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
) -> str | None:
    """Why no kernel multiplies by this weight as it is stored; None where one does.

    Args:
        codes: int8, [out, in]; of 4 bits between -8 and 7.
        scale: Float32, [out] or [out, in / group].
        zero_point: In the shape of the scale.
        bits: 8 or 4.
        device, dtype: Of the activations.
    """
    if dtype not in _HALF:
        return "the low-bit kernels are slow with float32: weights restored to float once, at load"
    groups = 1 if scale.dim() < 2 else scale.shape[1]
    if bits == 8:
        return _refusal8(codes, groups, zero_point) or probe(torch.device(device).type, bits)
    return _refusal4(codes, groups) or probe(torch.device(device).type, bits)


def _refusal8(codes: Tensor, groups: int, zero_point: Tensor | None) -> str | None:
    if groups != 1:
        return "8-bit weights with a scale for each group: torch's kernel takes one for each channel"
    if zero_point is not None and not zero_point.is_meta and bool(zero_point.any()):
        return "8-bit weights with a zero point"
    return f"a depth of {codes.shape[1]}, no multiple of {_DEPTH}" if codes.shape[1] % _DEPTH else None


def _refusal4(codes: Tensor, groups: int) -> str | None:
    size = codes.shape[1] // groups
    if size not in GROUPS or codes.shape[1] % size:
        return f"groups of {size}: torch's 4-bit kernels take {', '.join(map(str, GROUPS))}"
    return f"{codes.shape[0]} channels, no multiple of {_WIDTH}" if codes.shape[0] % _WIDTH else None


@functools.cache
def probe(device: str, bits: int) -> str | None:
    """Run a small product on this kind of device: None, or why the kernel is not right there."""
    if device not in ("cpu", "cuda"):
        return f"torch has no low-bit weights on {device}"
    if device == "cuda" and not torch.cuda.is_available():
        return "torch sees no CUDA device here"
    x = torch.ones(2, 32, dtype=torch.bfloat16, device=device)
    codes = (torch.arange(16 * 32, device=device) % 16 - 8).to(torch.int8).reshape(16, 32)
    scale, zero = torch.ones(16, 1, device=device), torch.zeros(16, 1, device=device)
    try:
        y = _int8_linear(x, codes, scale, None) if bits == 8 else _int4_linear(x, codes, scale, zero)
    except (RuntimeError, AttributeError, NotImplementedError) as e:
        return f"torch refuses {bits}-bit weights here: {str(e).splitlines()[0]}"
    exact = codes.double().sum(1).expand(2, -1)
    return None if torch.equal(y.double(), exact) else f"torch's product with {bits}-bit weights is wrong here"


class WeightOnlyLinear(Kernel):
    """Low-bit weights behind float activations; the output has the type of the input.

    Half-precision activations of few rows take torch's low-bit kernels, more rows the weights restored for the moment.
    Float32 activations take weights restored once, exactly, unless ``compute`` allows bfloat16.

    Args:
        codes: int8, [out, in]; of 4 bits between -8 and 7.
        scale: Float32, one element, [out] or [out, in / group].
        bias: Float32, [out], or None.
        zero_point: In the shape of the scale; None: 0.
        relu: Negative results become 0.
        bits: 8 or 4.
        compute: The type to which activations are rounded; None: that which they have.

    Raises:
        Unsupported: The codes are no matrix of int8, or the scales do not fit.
    """

    kind = "weight-only"

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor | None = None,
        zero_point: Tensor | None = None,
        relu: bool = False,
        bits: int = 8,
        compute: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require(_form(codes, scale, bits))
        self.bits, self.relu, self.compute = bits, relu, compute
        scale = scale.reshape(1, 1).expand(codes.shape[0], 1) if scale.numel() == 1 else scale
        scale = scale.reshape(codes.shape[0], -1)
        zero = (
            None
            if zero_point is None or not bool(zero_point.any())
            else zero_point.reshape(-1, 1 if zero_point.dim() < 2 else zero_point.shape[1])
        )
        self.register_buffer("weight", codes.contiguous())
        self._floats("weight_scale", scale)
        self._floats("weight_zero", None if zero is None else zero.expand(scale.shape))
        self._floats("bias", bias)
        self.runs_on = frozenset(d for d in ("cpu", "cuda") if self.refusal(d, torch.bfloat16) is None)

    def refusal(self, device: str, dtype: torch.dtype | None = None) -> str | None:
        dtype = dtype or self.compute or torch.float32
        return available(self.weight, self.weight_scale, self.weight_zero, self.bits, device, dtype)

    @property
    def verdict(self) -> str:
        return self.kind

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.compute or x.dtype
        half = _HALF if x.device.type == "cpu" else _HALF[:1]
        few = not torch.compiler.is_exporting() and x.numel() <= ROWS[self.bits] * x.shape[-1]
        if few and dtype in half and x.device.type in self.runs_on:
            return self._finish(self._few(x.to(dtype)), x)
        return self._finish(self._many(x.to(dtype)), x)

    def reference(self, x: Tensor) -> Tensor:
        """Weights restored in float32, products in float64."""
        weight = restore(self.weight, self.weight_scale, self.weight_zero)
        return self._finish(F.linear(x.double(), weight.double()), x)

    def _many(self, x: Tensor) -> Tensor:
        """Half precision restores the weight anew, for memory's sake; a float32 one is kept, for nothing is faster."""
        parts = (self.weight, self.weight_scale, self.weight_zero)
        if x.dtype in _HALF:
            if self.bits == 8 and self.weight_scale.shape[1] == 1 and self.weight_zero is None:
                return F.linear(x, self.weight.to(x.dtype)) * self.weight_scale[:, 0].to(x.dtype)
            return F.linear(x, restore(*parts, x.dtype))
        if x.dtype != torch.float32 or x.device.type != "cpu" or torch.compiler.is_exporting():
            return F.linear(x, restore(*parts).to(x.dtype))
        return (torch.ops.graphpress if traced(x) else _EAGER).restored_linear(x, *parts)

    def _few(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        own = torch.ops.graphpress if traced(x) else _EAGER
        product = own.int8_weight_linear if self.bits == 8 else own.int4_weight_linear
        y = product(rows, self.weight, self.weight_scale, self.weight_zero)
        return y.reshape(*x.shape[:-1], self.weight.shape[0])

    def _finish(self, y: Tensor, x: Tensor) -> Tensor:
        y = y if self.bias is None else y + self.bias.to(y.dtype)
        return (y.relu() if self.relu else y).to(x.dtype)


def restore(codes: Tensor, scale: Tensor, zero: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor:
    """(codes - zero) * scale, [out, in]; scale and zero are [out, groups]."""
    groups = codes.to(dtype).reshape(*scale.shape, -1)
    groups = groups if zero is None else groups - zero.to(dtype)[..., None]
    return (groups * scale.to(dtype)[..., None]).reshape(codes.shape)


def _form(codes: Tensor, scale: Tensor, bits: int) -> str | None:
    if codes.dtype != torch.int8 or codes.dim() != 2 or bits not in (4, 8):
        return (
            f"a {codes.dtype} weight of {codes.dim()} axes and {bits} bits: matrices of int8 codes of 8 or 4 bits only"
        )
    fits = scale.numel() == 1 or (
        scale.shape[0] == codes.shape[0] and codes.shape[1] % (scale.numel() // len(scale)) == 0
    )
    return None if fits else f"scales of shape {list(scale.shape)} for codes of shape {list(codes.shape)}"


def _int8_linear(x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """By torch's product, which torch's compiler cannot take with a scale that is computed (as of 2.13)."""
    return torch.ops.aten._weight_int8pack_mm(x.contiguous(), codes, scale[:, 0].to(x.dtype))


def _int4_linear(x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    layout = packed(("int4", x.device), lambda: pack4(codes, x.device.type), codes)
    pairs = packed(("int4", x.dtype), lambda: scales4(scale, zero, x.dtype), scale, *(() if zero is None else (zero,)))
    return product4(x, layout, pairs, codes.shape[1] // scale.shape[1])


def pack4(codes: Tensor, device: str) -> Tensor:
    """Codes in the layout of torch's 4-bit product on this kind of device."""
    unsigned = codes.to(torch.int32) + 8
    if device == "cpu":
        return torch.ops.aten._convert_weight_to_int4pack_for_cpu(unsigned, 1)
    pairs = (unsigned[:, ::2] << 4 | unsigned[:, 1::2]).to(torch.uint8)
    return torch.ops.aten._convert_weight_to_int4pack(pairs, 8 if codes.shape[1] % 128 == 0 else 2)


def scales4(scale: Tensor, zero: Tensor | None, dtype: torch.dtype) -> Tensor:
    """[groups, out, 2] of scale and offset: a weight is (unsigned code - 8) * scale + offset there."""
    offset = torch.zeros_like(scale) if zero is None else -zero * scale
    return torch.stack([scale.t(), offset.t()], -1).to(dtype).contiguous()


def product4(x: Tensor, layout: Tensor, pairs: Tensor, group: int) -> Tensor:
    """[rows, out] by torch's 4-bit product."""
    if x.device.type == "cpu":
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x.contiguous(), layout, group, pairs)
    return torch.ops.aten._weight_int4pack_mm(x.contiguous(), layout, group, pairs)


def _restored_linear(x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    others = (scale,) if zero is None else (scale, zero)
    return F.linear(x, packed("restored", lambda: restore(codes, scale, zero), codes, *others))


def _shape(x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], codes.shape[0]))


_EAGER = SimpleNamespace(
    int8_weight_linear=_int8_linear, int4_weight_linear=_int4_linear, restored_linear=_restored_linear
)
for _name, _function in vars(_EAGER).items():
    LIBRARY.define(f"{_name}(Tensor x, Tensor codes, Tensor scale, Tensor? zero) -> Tensor")
    LIBRARY.impl(_name, _function, "CPU")
    LIBRARY.impl(_name, _function, "CUDA")
    torch.library.register_fake(f"graphpress::{_name}", _shape, lib=LIBRARY)
