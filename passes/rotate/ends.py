"""Where a class of values leaves: outputs of the graph, and operators that want the channels as they were."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.passes.structure.channels.follow import Carried
from graphpress.passes.structure.channels.lanes import covers

MOST = 3  # ends of a class: what a product at each of them costs is little beside that of the layers


@dataclass(frozen=True, eq=False)
class End:
    """One reader of a value that is not to change.

    Attributes:
        value: [..., channels].
        node, slot: Who reads it; None where the graph gives it.
    """

    value: ir.Value
    node: ir.Node | None = None
    slot: int = 0


def ends(carried: Carried) -> list[End]:
    """The ends that all blocks of a class lie behind; none where one does not, or there are too many."""
    outputs = {v.name: v for v in carried.members if v.is_graph_output()}
    readers = {u.name: u for v in carried.members for u in v.consumers() if u.graph is v.graph}
    found: list[End] = []
    for block in carried.blocks:
        node = readers.get(block.where)
        if (value := outputs.get(block.where)) is not None:
            found.append(End(value))
        elif node is not None and not any(o in carried.members for o in node.outputs):
            found += [End(v, node, i) for i, v in enumerate(node.inputs) if v is not None and v in carried.members]
        else:
            return []
    whole = all(covers(carried.members[e.value], e.value, -1) for e in found)
    return found if whole and len(found) <= MOST else []


def insert(end: End, op: str, constant: np.ndarray, name: str) -> ir.Node:
    """A new ``op`` of the value and a constant, which that reader reads in its place."""
    value, anchor = end.value, end.value.producer()
    assert anchor is not None and isinstance(anchor.graph, ir.Graph) and value.dtype is not None
    graph = anchor.graph
    held = edit.add_const(graph, constant.astype(value.dtype.numpy()), f"{value.name}_{name}")
    made = edit.new_node(op, [value, held], after=anchor, name=f"{value.name}_{name}")
    edit.like(made.outputs[0], value)
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
