"""A number less a tensor of integers or truth values, for torch's exporter, which finds no form of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

_REFUSED = "Cannot find a compatible OpOverload for aten.sub"


def refused(error: BaseException) -> bool:
    """Whether this is what an export failed at; only then is it run again with ``table``."""
    found: BaseException | None = error
    while found is not None:
        if _REFUSED in str(found):
            return True
        found = found.__cause__
    return False


def table(torch: Any, opset: int) -> dict[Any, Callable[..., Any]]:
    """What the exporter is to write for the operator: for its ``custom_translation_table``."""
    from onnxscript.values import Opset

    op = Opset("", max(opset, 18))

    def rsub(self: Any, other: float, alpha: float = 1) -> Any:
        kind = self.dtype
        if kind == ir.DataType.BOOL or (isinstance(other, float) and not kind.is_floating_point()):
            kind = ir.DataType.FLOAT if isinstance(other, float) else ir.DataType.INT64
            self = op.Cast(self, to=kind.value)
        number = op.Constant(value=ir.tensor(other, dtype=kind))
        return op.Sub(number, self if alpha == 1 else op.Mul(self, op.Constant(value=ir.tensor(alpha, dtype=kind))))

    return {torch.ops.aten.rsub.Scalar: rsub}
