"""Products of groups of rows, each with a matrix of its own, for torch's exporter: a mixture's experts.

The rows are in the order of their experts and ``offs`` says where those of each end. A Slice and a MatMul for each
expert do no work twice, and each matrix is a constant of rank 2, which every pass knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from graphpress.errors import Unsupported


def table(torch: Any, opset: int) -> dict[Any, Callable[..., Any]]:
    """What the exporter is to write for the operators: for its ``custom_translation_table``."""
    from onnxscript.values import Opset

    op = Opset("", max(opset, 18))

    def grouped_mm(self: Any, mat2: Any, offs: Any = None, bias: Any = None, out_dtype: Any = None) -> Any:
        if offs is None:
            return op.MatMul(self, mat2)
        if len(self.shape) != 2 or len(mat2.shape) != 3:
            raise Unsupported("only groups of rows by a stack of matrices can be traced", where="torch's grouped_mm")
        return _by_rows(op, self, mat2, offs)

    def fallback(input: Any, weight: Any, offs: Any) -> Any:
        return _by_rows(op, input, weight, offs)

    found: dict[Any, Callable[..., Any]] = {}
    if hasattr(torch.ops.aten, "_grouped_mm"):
        found[torch.ops.aten._grouped_mm.default] = grouped_mm
    if hasattr(torch.ops.transformers, "grouped_mm_fallback"):  # where transformers 5 is imported
        found[torch.ops.transformers.grouped_mm_fallback.default] = fallback
    return found


def _by_rows(op: Any, x: Any, weight: Any, offs: Any) -> Any:
    """[rows, in] by [groups, in, out] and [groups], where the rows of each end: [rows, out]."""
    ends = op.Cast(offs, to=7)
    axis, start = op.Constant(value_ints=[0]), op.Constant(value_ints=[0])
    parts = []
    for i in range(weight.shape[0]):
        here, after = op.Constant(value_ints=[i]), op.Constant(value_ints=[i + 1])
        end = op.Slice(ends, here, after, axis)
        rows = op.Slice(x, start, end, axis)
        parts.append(op.MatMul(rows, op.Gather(weight, op.Constant(value_int=i), axis=0)))
        start = end
    return op.Concat(*parts, axis=0) if len(parts) > 1 else parts[0]
