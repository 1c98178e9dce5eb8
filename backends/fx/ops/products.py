"""Products of matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from graphpress.backends.fx.operands import Tensor


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """alpha A B + beta C."""
    plain = alpha == beta == 1.0
    if plain and transB and not transA and a.is_floating_point() and (c is None or c.dim() == 1):
        return F.linear(a, b, c)
    a, b = (a.t() if transA else a), (b.t() if transB else b)
    if not a.is_floating_point():
        return _integer_gemm(a, b, c, alpha, beta)
    if c is None:
        return torch.mm(a, b) if alpha == 1.0 else alpha * torch.mm(a, b)
    return torch.addmm(c, a, b, beta=beta, alpha=alpha)


def gemm_1(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    broadcast: int = 0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """Before opset 7 ``broadcast`` allowed C to be smaller; it is as in numpy."""
    return gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)


def _integer_gemm(a: Tensor, b: Tensor, c: Tensor | None, alpha: float, beta: float) -> Tensor:
    product = integer_matmul(a, b)
    if alpha != 1.0:
        product = (alpha * product.double()).to(a.dtype)
    if c is None:
        return product
    return product + (c if beta == 1.0 else (beta * c.double()).to(a.dtype))


def integer_matmul(a: Tensor, b: Tensor) -> Tensor:
    """torch multiplies matrices of integers on the CPU only."""
    if a.device.type != "cuda":
        return torch.matmul(a, b)
    if a.dim() == 1:
        return integer_matmul(a.unsqueeze(0), b).squeeze(-1 if b.dim() == 1 else -2)
    if b.dim() == 1:
        return (a * b).sum(-1, dtype=a.dtype)
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2, dtype=a.dtype)


def einsum(*xs: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *xs)


def integer_einsum(*xs: Tensor, equation: str) -> Tensor:
    """In 64 bits, since torch's sums of integers are; what overflows wraps all the same."""
    return torch.einsum(equation, *(x.long() for x in xs)).to(xs[0].dtype)


def det(x: Tensor) -> Tensor:
    """In single precision where the type is half."""
    return torch.linalg.det(x.float() if x.element_size() == 2 else x).to(x.dtype)


OPS: dict[str, Callable[..., Any]] = {
    "Gemm": gemm_1, "Gemm@7": gemm, "MatMul": torch.matmul, "MatMul:integer": integer_matmul,
    "Einsum": einsum, "Einsum:integer": integer_einsum, "Det": det,
}  # fmt: skip
