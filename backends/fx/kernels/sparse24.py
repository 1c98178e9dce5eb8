"""x W^T + b with a 2:4 weight, by CUDA's semi-structured products (torch.sparse.to_sparse_semi_structured)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from graphpress.backends.fx.kernels.base import Kernel, packed, require, traced

_ROWS, _COLUMNS = 32, 64  # multiples that every library behind torch takes, [out, in]
_CAPABILITY = (8, 0)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def available(weight: Tensor, device: str = "cuda") -> str | None:
    """Why torch does not multiply this weight sparse on this device, in its type or another; None where it does.

    Args:
        weight: [out, in], 2:4 along in.
    """
    if (refusal := _form(weight)) is not None:
        return refusal
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        return f"torch multiplies 2:4 weights sparse on CUDA, not on {device}"
    if torch.cuda.get_device_capability(device) < _CAPABILITY:
        return "sparse products need a device of compute capability 8.0"
    if weight.shape[0] % _ROWS or weight.shape[1] % _COLUMNS:
        return f"a 2:4 weight of shape {list(weight.shape)}: multiples of {_ROWS} x {_COLUMNS} only"
    return None


def _form(weight: Tensor) -> str | None:
    if weight.dim() != 2 or weight.dtype not in _FLOATS:
        return f"a {weight.dtype} weight of {weight.dim()} axes: a matrix of floats"
    if weight.shape[1] % 4 or int((weight.reshape(-1, 4) != 0).sum(1).max()) > 2:
        return "a weight that has not the pattern 2:4"
    return None


class Sparse24Linear(Kernel):
    """A product with a 2:4 weight; dense where the device has no sparse product.

    Args:
        weight: [out, in], 2:4 along in.
        bias: [out], or None.

    Raises:
        Unsupported: The weight has not the pattern.
    """

    kind = "sparse"

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        require(_form(weight))
        # Parameters, unlike a kernel's buffers, follow half() and bfloat16(), where sparse products are fast.
        self.weight = torch.nn.Parameter(weight.contiguous(), requires_grad=False)
        self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)

    def refusal(self, device: str) -> str | None:
        why = available(self.weight, device)
        if why is None and self.weight.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32:
            return "float32 would be rounded to TF32, which torch.backends.cuda.matmul.allow_tf32 does not allow"
        return why

    def forward(self, x: Tensor) -> Tensor:
        fits = x.device.type == "cuda" and x.dtype == self.weight.dtype and not traced(x)
        return self.sparse(x) if fits and self.refusal("cuda") is None else self.reference(x)

    def sparse(self, x: Tensor) -> Tensor:
        """By the kernel, on CUDA."""
        weight = packed("2:4", lambda: torch.sparse.to_sparse_semi_structured(self.weight.detach()), self.weight)
        rows = F.linear(x.reshape(-1, x.shape[-1]).contiguous(), weight, self.bias)
        return rows.reshape(*x.shape[:-1], -1)

    def reference(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)
