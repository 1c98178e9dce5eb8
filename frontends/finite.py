"""Whether the numbers in a model can be computed with: one pass over the weights, in pieces."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graphpress.errors import InvalidModel
from graphpress.frontends.settle import LAYERS
from graphpress.frontends.stored import StoredTensor
from graphpress.graph import edit

CHUNK = 1 << 20  # elements looked at together


def check_finite(model: ir.Model) -> None:
    """Refuse damaged weights: NaN in any initializer, or an infinity in an operand of a layer.

    A single NaN that feeds no layer is a constant of the program, an infinity outside of layers a mask: both are fine.

    Raises:
        InvalidModel: Names the first such initializer and counts its values.
    """
    for value, tensor in _constants(model):
        if not tensor.dtype.is_floating_point() or tensor.dtype.bitwidth < 8:
            continue
        nan, infinite = count(tensor)
        layer = next((u.node for u in value.uses() if u.node.op_type in LAYERS), None)
        if (layer and nan + infinite) or (nan and tensor.size > 1):
            raise InvalidModel(
                f"{nan + infinite} of {tensor.size} values are not finite ({nan} NaN, {infinite} infinite)",
                where=f"weight {value.name!r}" + (f" of node {layer.name!r} ({layer.op_type})" if layer else ""),
                fix="Repair the weights, or load with allow_nonfinite=True.",
            )


def _constants(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for graph in edit.graphs(model):
        if isinstance(graph, ir.Graph):
            yield from ((v, v.const_value) for v in graph.initializers.values() if v.const_value is not None)
        for node in graph:
            if node.op_type == "Constant" and (tensor := edit.constant_tensor(node.outputs[0])) is not None:
                yield node.outputs[0], tensor


def count(tensor: ir.TensorProtocol) -> tuple[int, int]:
    """How many elements of a float tensor are NaN, and how many infinite."""
    nan = infinite = 0
    for piece in _pieces(tensor):
        if not np.isfinite(piece).all():
            nans = int(np.isnan(piece).sum())
            nan += nans
            infinite += int((~np.isfinite(piece)).sum()) - nans
    return nan, infinite


def _pieces(tensor: ir.TensorProtocol) -> Iterator[np.ndarray]:
    if isinstance(tensor, StoredTensor):
        yield from tensor.pieces()
        return
    flat = tensor.numpy().reshape(-1)
    yield from (flat[i : i + CHUNK] for i in range(0, flat.size, CHUNK))
