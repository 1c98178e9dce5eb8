"""Whether all or any truth values hold, for torch's exporter, which has no form of it: checks in a model ask for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def table(torch: Any, opset: int) -> dict[Any, Callable[..., Any]]:
    """What the exporter is to write for the operators: for its ``custom_translation_table``."""
    from onnxscript.values import Opset

    op, aten = Opset("", max(opset, 18)), torch.ops.aten

    def of(reduce: str) -> Callable[..., Any]:
        def holds(self: Any) -> Any:
            return op.Cast(getattr(op, reduce)(op.Cast(self, to=6), keepdims=0), to=9)  # int32, and back

        return holds

    every, some = of("ReduceMin"), of("ReduceMax")
    return {aten._is_all_true.default: every, aten._is_any_true.default: some}
