"""Layers at the ends of a model: nothing but what comes in stands before them, or nothing but what goes out behind."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphpress.graph import edit
from graphpress.passes.structure.channels.lanes import dims
from graphpress.passes.structure.layers.linear import FLOATS

_LAYERS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN", "Gather")


def first_layers(graph: Sequence[ir.Node] | ir.Graph) -> list[ir.Node]:
    """The layers (tables of embeddings too) that read nothing that comes from another one, in order."""
    behind: set[ir.Value] = set()
    found = []
    for node in graph:
        late = any(v in behind for v in edit.reads(node))
        if _is_layer(node) and not late:
            found.append(node)
        if late or _is_layer(node) or _holds_layers(node):
            behind.update(node.outputs)
    return found


def last_layers(graph: Sequence[ir.Node] | ir.Graph) -> list[ir.Node]:
    """The layers from which no way leads to another one, in order."""
    before: set[ir.Value] = set()
    found = []
    for node in reversed(graph):
        early = any(v in before for v in node.outputs)
        if _is_layer(node) and not early:
            found.append(node)
        if early or _is_layer(node) or _holds_layers(node):
            before.update(edit.reads(node))
    return found[::-1]


def _holds_layers(node: ir.Node) -> bool:
    """Whether a layer stands in the bodies of a node."""
    return any(_is_layer(inner) for body in edit.subgraphs(node) for scope in edit.scopes(body) for inner in scope)


def _is_layer(node: ir.Node) -> bool:
    """Whether a node multiplies by a constant matrix, or picks rows of one."""
    if node.domain or node.op_type not in _LAYERS:
        return False
    weight = node.inputs[0 if node.op_type == "Gather" else 1]
    return edit.is_constant(weight) and weight is not None and weight.dtype in FLOATS and len(dims(weight) or ()) > 1
