"""squeeze for torch's exporter: it takes away only what is 1 where the module is traced, as torch does.

Left to itself, the exporter writes a Squeeze of axes of any size, which ONNX forbids, and one of all axes where the
module has none in mind, which would take away a batch of 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def table(torch: Any, opset: int) -> dict[Any, Callable[..., Any]]:
    """What the exporter is to write for the operators: for its ``custom_translation_table``."""
    from onnxscript.values import Opset

    op, aten = Opset("", max(opset, 18)), torch.ops.aten.squeeze

    def squeeze(self: Any) -> Any:
        return _squeezed(op, self, range(len(self.shape)))

    def squeeze_dim(self: Any, dim: int) -> Any:
        return _squeezed(op, self, [dim])

    def squeeze_dims(self: Any, dim: Sequence[int]) -> Any:
        return _squeezed(op, self, dim)

    return {aten.default: squeeze, aten.dim: squeeze_dim, aten.dims: squeeze_dims}


def _squeezed(op: Any, x: Any, dims: Sequence[int]) -> Any:
    axes = [axis for axis in dims if len(x.shape) and x.shape[axis] == 1]
    return op.Squeeze(x, axes) if axes else op.Identity(x)
