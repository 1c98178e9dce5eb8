"""x W^T + b with float8 weights and activations on CUDA, by torch._scaled_mm."""

from __future__ import annotations

import torch
from torch import Tensor

from graphpress.backends.fx.kernels.base import Kernel, require

FLOAT8 = torch.float8_e4m3fn
_LARGEST, _STEP, _CAPABILITY = 448.0, 16, (8, 9)


def available(codes: Tensor, scale: Tensor, device: str = "cuda") -> str | None:
    """Why torch._scaled_mm does not multiply by this weight on this device; None where it does.

    Args:
        codes: float8_e4m3fn, [out, in].
        scale: Float32, one element.
    """
    if (refusal := _form(codes, scale)) is not None:
        return refusal
    if any(n % _STEP for n in codes.shape):
        return f"a float8 weight of shape {list(codes.shape)}: multiples of {_STEP} only"
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        return f"torch multiplies float8 on CUDA, not on {device}"
    if torch.cuda.get_device_capability(device) < _CAPABILITY:
        return "float8 products need a device of compute capability 8.9"
    return None


def _form(codes: Tensor, scale: Tensor) -> str | None:
    if codes.dtype != FLOAT8 or codes.dim() != 2 or scale.numel() != 1:
        return f"a {codes.dtype} weight of {codes.dim()} axes, {scale.numel()} scales: a float8_e4m3fn matrix with one"
    return None


class DynamicFloat8Linear(Kernel):
    """One scale for the activations of a call, so that the largest becomes the largest float8; the input's type out.

    Args:
        codes, scale: As in :func:`available`.
        bias: Float32, [out], or None.
        relu: Negative results become 0.

    Raises:
        Unsupported: The weight is not of this form.
    """

    def __init__(self, codes: Tensor, scale: Tensor, bias: Tensor | None = None, relu: bool = False) -> None:
        super().__init__()
        require(_form(codes, scale))
        self.relu = relu
        self.register_buffer("weight", codes.contiguous())
        self._floats("weight_scale", scale.reshape(()))
        self._floats("bias", bias)

    def refusal(self, device: str) -> str | None:
        return available(self.weight, self.weight_scale, device)

    def forward(self, x: Tensor) -> Tensor:
        fits = not any(n % _STEP for n in self.weight.shape)
        return self.scaled(x) if x.device.type == "cuda" and fits else self.reference(x)

    def scaled(self, x: Tensor) -> Tensor:
        """By the kernel: products in float32, given back in bfloat16 where the input is of half precision."""
        codes, scale = self._codes(x)
        y = torch._scaled_mm(
            codes.reshape(-1, x.shape[-1]),
            self.weight.t(),
            scale,
            self.weight_scale,
            out_dtype=torch.float32 if x.dtype == torch.float32 else torch.bfloat16,
        )
        return self._finish(y.reshape(*x.shape[:-1], -1), x)

    def reference(self, x: Tensor) -> Tensor:
        codes, scale = self._codes(x)
        y = (codes.double() @ self.weight.double().t()) * (scale * self.weight_scale)
        return self._finish(y, x)

    def _codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale = (x.float().abs().amax() / _LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
        return (x.float() / scale).clamp(-_LARGEST, _LARGEST).to(FLOAT8), scale

    def _finish(self, y: Tensor, x: Tensor) -> Tensor:
        y = y if self.bias is None else y + self.bias
        return (y.relu() if self.relu else y).to(x.dtype)
