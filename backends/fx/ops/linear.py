"""Products of matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from graphpress.backends.fx.operands import Tensor


def gemm(a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0) -> Tensor:  # noqa: N803
    """alpha A B + beta C."""
    a, b = (a.t() if transA else a), (b.t() if transB else b)
    if c is None:
        return torch.mm(a, b) if alpha == 1.0 else alpha * torch.mm(a, b)
    return torch.addmm(c, a, b, beta=beta, alpha=alpha)


OPS: dict[str, Callable[..., Any]] = {"Gemm": gemm, "MatMul": torch.matmul}
