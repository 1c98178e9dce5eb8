"""Means of what is scattered to one place, for torch's exporter, which takes the last of it in silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from graphpress.errors import Unsupported


def table(torch: Any, opset: int) -> dict[Any, Callable[..., Any]]:
    """What the exporter is to write for the operator: for its ``custom_translation_table``."""
    from onnxscript.function_libs.torch_lib.ops import core
    from onnxscript.values import Opset

    op = Opset("", max(opset, 18))

    def scatter_reduce(self: Any, dim: int, index: Any, src: Any, reduce: str, include_self: bool = True) -> Any:
        if reduce != "mean":
            return core.aten_scatter_reduce(self, dim, index, src, reduce, include_self)
        if not self.dtype.is_floating_point() or not len(self.shape):
            raise Unsupported("only means of floats along an axis can be traced", where="torch's scatter_reduce")
        zero, one = (op.Constant(value=ir.tensor(x, dtype=self.dtype)) for x in (0.0, 1.0))
        none, all_ = (op.Expand(x, op.Shape(self)) for x in (zero, one))
        ones = op.Expand(one, op.Shape(src))
        total = op.ScatterElements(self if include_self else none, index, src, axis=dim, reduction="add")
        count = op.ScatterElements(all_ if include_self else none, index, ones, axis=dim, reduction="add")
        mean = op.Div(total, op.Max(count, one))
        return mean if include_self else op.Where(op.Greater(count, zero), mean, self)

    return {torch.ops.aten.scatter_reduce.two: scatter_reduce}
