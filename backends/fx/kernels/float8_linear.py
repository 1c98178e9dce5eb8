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
        scale: Float32, one element or [out].
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
    if codes.dtype != FLOAT8 or codes.dim() != 2 or scale.numel() not in (1, codes.shape[0]):
        return f"a {codes.dtype} weight of {codes.dim()} axes, {scale.numel()} scales: a float8_e4m3fn matrix with one"
    return None


class Float8Linear(Kernel):
    """Activations by a calibrated scale, or each row by one of its own; the input's type out, of codes float32.

    Args:
        codes, scale: As in :func:`available`: one scale multiplies tensor-wise, several row-wise.
        bias: Float32, [out], or None.
        relu: Negative results become 0.
        input_scale: Of the activations; then codes may come in. None: found for each row of each call.

    Raises:
        Unsupported: The weight is not of this form.
    """

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor | None = None,
        relu: bool = False,
        input_scale: float | None = None,
    ) -> None:
        super().__init__()
        require(_form(codes, scale))
        self.relu = relu
        self.register_buffer("weight", codes.contiguous())
        self._floats("weight_scale", scale.reshape(-1))
        self._floats("bias", bias)
        self._floats("input_scale", input_scale)

    def refusal(self, device: str) -> str | None:
        return available(self.weight, self.weight_scale, device)

    def forward(self, x: Tensor) -> Tensor:
        fits = not any(n % _STEP for n in self.weight.shape)
        return self.scaled(x) if x.device.type == "cuda" and fits else self.reference(x)

    def scaled(self, x: Tensor) -> Tensor:
        """By the kernel. Row-wise products come out in bfloat16, which is all that torch has for them."""
        codes, scale = self._codes(x)
        rows = codes.reshape(-1, x.shape[-1])
        weight_scale, wide = self.weight_scale, x.dtype in (torch.float32, FLOAT8)
        if scale.numel() == 1 and weight_scale.numel() == 1:
            out = torch.float32 if wide else torch.bfloat16
            y = torch._scaled_mm(rows, self.weight.t(), scale.reshape(()), weight_scale.reshape(()), out_dtype=out)
        else:
            each = scale.reshape(-1, 1).expand(rows.shape[0], 1).contiguous()
            across = weight_scale.reshape(1, -1).expand(1, self.weight.shape[0]).contiguous()
            y = torch._scaled_mm(rows, self.weight.t(), each, across, out_dtype=torch.bfloat16)
        return self._finish(y.reshape(*x.shape[:-1], -1), x)

    def reference(self, x: Tensor) -> Tensor:
        codes, scale = self._codes(x)
        y = (codes.double() @ self.weight.double().t()) * (scale.double() * self.weight_scale.double())
        return self._finish(y, x)

    def _codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.input_scale is not None:
            if x.dtype == FLOAT8:
                return x, self.input_scale
            scale = self.input_scale
        else:
            largest = x.float().abs().amax(-1, keepdim=True)
            scale = (largest / _LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
        return (x.float() / scale).clamp(-_LARGEST, _LARGEST).to(FLOAT8), scale

    def _finish(self, y: Tensor, x: Tensor) -> Tensor:
        y = y if self.bias is None else y + self.bias
        return (y.relu() if self.relu else y).to(torch.float32 if x.dtype == FLOAT8 else x.dtype)
