"""Masks of Attention as ONNX Runtime's kernel reads them.

A mask may be anything that broadcasts to [batch, heads, queries, keys], and may end before the last key. ONNX Runtime
1.32 broadcasts batch and heads only (``attention_helper.h``: the mask has a row a query and a column a key). A row for
all queries is repeated, and missing columns are masked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphpress.backends.ort.emit import Shared, helper_node
from graphpress.graph import edit

_MASK, _PAST = 3, 4  # inputs of Attention


def readable(model: ir.Model) -> ir.Model:
    """The model, or a copy in which ONNX Runtime reads every mask."""
    if not any(_needs(node) for node in edit.nodes(model)):
        return model
    copy = model.clone()
    expand(copy)
    return copy


def expand(model: ir.Model) -> None:
    """Write out the masks that ONNX Runtime does not read; in place."""
    shared = Shared()
    for node in [n for n in edit.nodes(model) if _needs(n)]:
        if _missing(node):
            _pad(node, _missing(node))
        if _repeats(node):
            _repeat(node, shared)


def _needs(node: ir.Node) -> bool:
    if node.op_type != "Attention" or node.domain or not isinstance(node.graph, ir.Graph):
        return False
    return len(node.inputs) > _MASK and node.inputs[_MASK] is not None and (_repeats(node) or _missing(node) > 0)


def _dims(value: ir.Value | None) -> list[Any]:
    """The sizes of a value: a number or a name where it is known, else None; [] where the rank is not."""
    if value is None or value.shape is None:
        return []
    return [d if isinstance(d, int) else d.value for d in value.shape]


def _repeats(node: ir.Node) -> bool:
    """Whether the mask may have one row for several queries."""
    mask, queries = _dims(node.inputs[_MASK]), _dims(node.inputs[0])[-2:-1]
    return len(mask) < 2 or mask[-2] is None or mask[-2:-1] != queries


def _missing(node: ir.Node) -> int:
    """Keys that the mask ends before, where that is known."""
    past = _dims(node.inputs[_PAST])[-2:-1] if len(node.inputs) > _PAST and node.inputs[_PAST] is not None else [0]
    sizes = (*_dims(node.inputs[_MASK])[-1:], *_dims(node.inputs[1])[-2:-1], *past)
    numbers = [s for s in sizes if isinstance(s, int)]
    return max(0, numbers[1] + numbers[2] - numbers[0]) if len(numbers) == 3 else 0


def _pad(node: ir.Node, columns: int) -> None:
    mask = node.inputs[_MASK]
    assert mask is not None and mask.dtype is not None and isinstance(node.graph, ir.Graph)
    off = np.array(False if mask.dtype == ir.DataType.BOOL else -np.inf, mask.dtype.numpy())
    parts = {"pads": np.array([0, columns], np.int64), "value": off, "axes": np.array([-1], np.int64)}
    values = [edit.add_const(node.graph, array, f"{mask.name}_{name}") for name, array in parts.items()]
    padded = edit.like(helper_node("Pad", [mask, *values], node), mask)
    padded.shape = None if mask.shape is None else ir.Shape([*mask.shape[:-1], mask.shape[-1] + columns])
    edit.set_input(node, _MASK, padded)


def _repeat(node: ir.Node, shared: Shared) -> None:
    """One row a query: all layers that read one mask read one copy of it."""
    mask, queries = node.inputs[_MASK], node.inputs[0]
    assert mask is not None and queries is not None
    rows = _dims(queries)[-2:-1]
    key = (id(node.graph), mask.name, *(rows if rows and rows[0] is not None else [queries.name]))

    def make() -> ir.Value:
        return edit.like(helper_node("Expand", [mask, _shape(node, queries, rows)], node), mask)

    wide = shared.once(key, make)
    wide.shape = ir.Shape([*mask.shape[:-2], rows[0], mask.shape[-1]]) if mask.shape and rows else None
    edit.set_input(node, _MASK, wide)


def _shape(node: ir.Node, queries: ir.Value, rows: list[Any]) -> ir.Value:
    """[number of queries, 1]: what is 1 keeps the mask's own size."""
    assert isinstance(node.graph, ir.Graph)
    if rows and isinstance(rows[0], int):
        return edit.add_const(node.graph, np.array([rows[0], 1], np.int64), "rows")
    count = helper_node("Shape", [queries], node, {"start": -2, "end": -1})
    one = edit.add_const(node.graph, np.array([1], np.int64), "one")
    return helper_node("Concat", [count, one], node, {"axis": 0})
