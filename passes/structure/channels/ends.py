"""Where a class of values leaves: outputs of the graph, and operators that want the channels as they were."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphpress.passes.structure.channels.follow import Carried

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
    at = [carried.members[e.value] for e in found]
    whole = all(lanes.shape[-1] == lanes.size == carried.extent and (lanes >= 0).all() for lanes in at)
    return found if whole and len(found) <= MOST else []
