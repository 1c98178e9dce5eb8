"""Embeddings: rows are gathered as integers, and only those rows become floats.

com.microsoft::GatherBlockQuantized takes 2, 4 or 8 bits with blocks (16 and up, a power of two) along the row; one
scale a row is one block that is at least as long as the row, one scale for the table the same with equal scales.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphpress.backends import canonical
from graphpress.backends.canonical import Weight
from graphpress.backends.ort import emit
from graphpress.backends.ort.lowering import LoweringRule
from graphpress.backends.ort.rules.lower_nbits import pack_bits
from graphpress.graph import edit
from graphpress.target import Target


def _apply(node: ir.Node, target: Target, shared: emit.Shared) -> bool:
    """Lower ``node`` if it gathers from a quantized table; whether it was."""
    w = canonical.weight(node.inputs[0])
    if w is None:
        return False
    block = _block(w)
    if not block or edit.attribute(node, "axis", 0) != 0:
        return False
    _blocked(node, w, block, shared)
    return True


def _block(w: Weight) -> int:
    """The block along the row; 0 where GatherBlockQuantized has none."""
    if w.codes.ndim != 2:
        return 0
    if w.axis in (None, 0) and not w.block:
        return max(16, 1 << (w.codes.shape[1] - 1).bit_length())
    return w.block if w.axis == 1 and w.block >= 16 and w.block & (w.block - 1) == 0 else 0


def _blocked(node: ir.Node, w: Weight, block: int, shared: emit.Shared) -> None:
    graph, name, middle = node.graph, w.value.name, 1 << (w.bits - 1)
    assert isinstance(graph, ir.Graph)
    shift = middle if w.dtype.is_signed() else 0

    def unsigned(array: np.ndarray) -> np.ndarray:
        return pack_bits((array.astype(np.int16) + shift).astype(np.uint8), w.bits)

    def by_row(array: np.ndarray) -> np.ndarray:
        flat = array.reshape(1, 1) if w.axis is None else array.reshape(array.shape[0], -1)
        return np.ascontiguousarray(np.broadcast_to(flat, (w.codes.shape[0], flat.shape[1])))

    codes = shared.const(graph, ("gather", name), f"{name}_packed", lambda: unsigned(w.codes))
    scale = shared.const(graph, ("gather scale", name), f"{name}_scale", lambda: by_row(w.scale))
    inputs: list[ir.Value | None] = [codes, node.inputs[1], scale]
    if (w.zero + shift != middle).any():
        inputs.append(shared.const(graph, ("gather zero", name), f"{name}_zero", lambda: unsigned(by_row(w.zero))))
    attributes = {"bits": w.bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    emit.substitute(node, "GatherBlockQuantized", inputs, attributes)


RULE = LoweringRule("embeddings", 50, _apply, ops=("Gather",), kernels=("GatherBlockQuantized",), modes=("weight",))
