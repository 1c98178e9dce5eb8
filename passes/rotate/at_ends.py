"""Operators put in at the ends of a class of values, and taken out again."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.keys import TURNS
from graphpress.passes.structure.channels.ends import End


def insert(end: End, op: str, constant: np.ndarray, name: str) -> ir.Node:
    """A new ``op`` of the value and a constant, which that reader reads in its place."""
    value, anchor = end.value, end.value.producer()
    assert anchor is not None and isinstance(anchor.graph, ir.Graph) and value.dtype is not None
    graph = anchor.graph
    held = edit.add_const(graph, constant.astype(value.dtype.numpy()), f"{value.name}_{name}")
    made = edit.new_node(op, [value, held], after=anchor, name=f"{value.name}_{name}")
    edit.like(made.outputs[0], value)
    if op == "MatMul":
        made.metadata_props[TURNS] = "back"
    if end.node is not None:
        edit.set_input(end.node, end.slot, made.outputs[0])
        return made
    public = value.name
    for i, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[i] = made.outputs[0]
    value.name = edit.fresh_name(graph, f"{public}_inner")
    made.outputs[0].name = public
    return made


def take_out(node: ir.Node) -> None:
    """The inverse of ``insert``."""
    inputs = list(node.inputs)
    assert inputs[0] is not None
    edit.replace(node.outputs[0], inputs[0])
    edit.remove([node])
    edit.remove_unused(inputs[1:])
