"""Stored integers that are transposed or reshaped behind their DequantizeLinear: stored as they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import edit
from graphpress.graph.evaluate import evaluate
from graphpress.graph.grid import is_dequantize
from graphpress.graph.movement import rearranges
from graphpress.passes.clean.constants import graph_nodes
from graphpress.types import Numerics


@dataclass(frozen=True)
class RearrangeCodes(Pass):
    """Let a layer read its weight right from the DequantizeLinear, as kernels and passes expect it: the Transpose or
    Reshape between them is done to the codes, and what others read of them stays.

    A reshaping that divides the axis of the scales stays.
    """

    name: ClassVar[str] = "rearrange-codes"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        opset = edit.opset(model)
        for node in graph_nodes(model):
            source = node.inputs[0].producer() if rearranges(node) and node.inputs[0] is not None else None
            if is_dequantize(source) and isinstance(node.graph, ir.Graph) and not node.outputs[0].is_graph_output():
                why = _rearrange(node, source, opset)
                if why:
                    report.skip(node, why)
                else:
                    report.changed += 1


def _rearrange(node: ir.Node, dequantize: ir.Node, opset: int) -> str:
    """Why not, or ''."""
    stored = dequantize.inputs[0]
    if len(dequantize.outputs[0].uses()) > 1 or (stored is not None and len(stored.uses()) > 1):
        return "others read the codes as they are stored"
    codes, scale, *zero = (edit.constant(v) for v in dequantize.inputs)
    operands = [edit.constant(v) for v in node.inputs[1:]]
    if codes is None or scale is None or any(o is None for o in operands) or any(z is None for z in zero):
        return "codes, scales or the new form are computed at run time"
    if edit.attribute(dequantize, "block_size", 0):
        return "its scales go by blocks"
    try:
        (places,) = evaluate(node, [np.arange(codes.size).reshape(codes.shape), *operands], opset)
    except ValueError as e:
        return f"not computable: {e}"
    axis = _axis(codes.shape, edit.attribute(dequantize, "axis", 1), places) if scale.size > 1 else 0
    if axis is None:
        return "it divides the axis of the scales"
    _write(node, dequantize, codes.reshape(-1)[places], axis if scale.size > 1 else None)
    return ""


def _axis(shape: tuple[int, ...], axis: int, places: np.ndarray) -> int | None:
    """The axis of the rearranged array along which what was ``axis`` runs, alone."""
    channel = np.unravel_index(places, shape)[axis % len(shape)]
    for i, size in enumerate(places.shape):
        along = np.arange(size).reshape([-1 if j == i else 1 for j in range(places.ndim)])
        if size == shape[axis % len(shape)] and np.array_equal(channel, np.broadcast_to(along, places.shape)):
            return i
    return None


def _write(node: ir.Node, dequantize: ir.Node, codes: np.ndarray, axis: int | None) -> None:
    graph, out = node.graph, node.outputs[0]
    assert isinstance(graph, ir.Graph) and dequantize.inputs[0] is not None
    name = dequantize.inputs[0].name or "codes"
    held = edit.add_const(graph, ir.Tensor(np.ascontiguousarray(codes)), f"{name}_{node.op_type.lower()}")
    given = {n: a.value for n, a in dequantize.attributes.items() if n != "axis"} | (
        {} if axis is None else {"axis": axis}
    )
    made = edit.new_node("DequantizeLinear", [held, *dequantize.inputs[1:]], given, before=node, origin=dequantize)
    made.metadata_props.update(dequantize.metadata_props)
    edit.like(made.outputs[0], out)
    made.outputs[0].shape = ir.Shape(codes.shape)
    edit.replace(out, made.outputs[0])
    sources = list(node.inputs)
    edit.remove([node])
    edit.remove_unused(sources)
