"""Operators on complex numbers for torch's exporter, which has no form of these: rotary embeddings are written so.

A complex tensor is a real one with a last axis of two, which torch does not count. The exporter reads annotations, and
not where names are imported in a function: they are no strings here.
"""

from collections.abc import Callable, Sequence
from typing import Any


def table(torch: Any) -> dict[Any, Callable[..., Any]]:
    """What the exporter is to write where an operand is complex, by torch's operator."""
    from onnxscript import INT64
    from onnxscript.function_libs.torch_lib.ops import core

    aten = torch.ops.aten

    def axis(x: Any, dim: int) -> int:
        return dim if dim >= 0 else dim + len(x.shape) - 1

    def unsqueeze(self: Any, dim: int) -> Any:
        return core.aten_unsqueeze(self, dim if dim >= 0 else dim + len(self.shape))

    def expand(self: Any, size: Sequence[INT64], implicit: bool = False) -> Any:
        return core.aten_expand(self, [*size, 2])

    def repeat(self: Any, repeats: Sequence[INT64]) -> Any:
        return core.aten_repeat(self, [*repeats, 1])

    def select(self: Any, dim: int, index: int) -> Any:
        return core.aten_select(self, axis(self, dim), index)

    def index_select(self: Any, dim: int, index: Any) -> Any:
        return core.aten_index_select(self, axis(self, dim), index)

    def unbind(self: Any, dim: int = 0) -> Any:
        return core.aten_unbind(self, axis(self, dim))

    def split(self: Any, split_size: INT64, dim: int = 0) -> Any:
        return core.aten_split(self, split_size, axis(self, dim))

    def split_with_sizes(self: Any, split_sizes: INT64, dim: int = 0) -> Any:
        return core.aten_split_with_sizes(self, split_sizes, axis(self, dim))

    return {
        aten.unsqueeze.default: unsqueeze, aten.expand.default: expand, aten.repeat.default: repeat,
        aten.select.int: select, aten.index_select.default: index_select, aten.index.Tensor: core.aten_index,
        aten.unbind.int: unbind, aten.split.Tensor: split, aten.split_with_sizes.default: split_with_sizes,
    }  # fmt: skip
