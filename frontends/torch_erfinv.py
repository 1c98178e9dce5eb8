"""The inverse of the error function for torch's exporter, which has no form of it: quantiles of a normal distribution.

By two polynomials in float32, exact to three units in the last place (Giles, Approximating the erfinv function, GPU
Computing Gems 2, 2011, table 10.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir

_MIDDLE = (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503,
           -0.00417768164, 0.246640727, 1.50140941)  # fmt: skip
_TAIL = (-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047,
         1.00167406, 2.83297682)  # fmt: skip


def table(torch: Any, opset: int) -> dict[Any, Callable[..., Any]]:
    """What the exporter is to write for the operator: for its ``custom_translation_table``."""
    from onnxscript.values import Opset

    op = Opset("", max(opset, 18))

    def number(x: float) -> Any:
        return op.Constant(value=ir.tensor(x, dtype=ir.DataType.FLOAT))

    def polynomial(w: Any, factors: Sequence[float]) -> Any:
        p = number(factors[0])
        for factor in factors[1:]:
            p = op.Add(op.Mul(p, w), number(factor))
        return p

    def erfinv(self: Any) -> Any:
        x = op.Cast(self, to=ir.DataType.FLOAT.value)
        w = op.Neg(op.Log(op.Mul(op.Sub(number(1.0), x), op.Add(number(1.0), x))))
        middle = polynomial(op.Sub(w, number(2.5)), _MIDDLE)
        tail = polynomial(op.Sub(op.Sqrt(w), number(3.0)), _TAIL)
        found = op.Mul(op.Where(op.Less(w, number(5.0)), middle, tail), x)
        ends = op.Equal(op.Abs(x), number(1.0))
        return op.Cast(op.Where(ends, op.Mul(x, number(float("inf"))), found), to=self.dtype.value)

    return {torch.ops.aten.erfinv.default: erfinv, torch.ops.aten.special_erfinv.default: erfinv}
