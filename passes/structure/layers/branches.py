"""Residual branches: the nodes between a value and an Add that joins it again."""

from __future__ import annotations

import onnx_ir as ir

from graphpress.graph import edit


def branch_nodes(graph: ir.Graph) -> set[ir.Node]:
    """The nodes on a way from some value to an Add whose other operand is that value: what the residual goes around."""
    place = {node: i for i, node in enumerate(graph)}
    found: set[ir.Node] = set()
    for node in graph:
        if node.op_type != "Add" or node.domain or any(v is None or edit.is_constant(v) for v in node.inputs):
            continue
        a, b = node.inputs
        assert a is not None and b is not None
        early, late = (a, b) if _place(a, place) < _place(b, place) else (b, a)
        found |= _between(early, late, place)
    return found


def _place(value: ir.Value, place: dict[ir.Node, int]) -> int:
    """Where in the graph a value is made; -1 for an input."""
    producer = value.producer()
    return -1 if producer is None else place.get(producer, -1)


def _between(early: ir.Value, late: ir.Value, place: dict[ir.Node, int]) -> set[ir.Node]:
    """The nodes on ways from ``early`` to ``late``, none if there is no way."""
    start, above, pending = _place(early, place), set[ir.Node](), [late]
    while pending:
        node = pending.pop().producer()
        if node is not None and node not in above and place.get(node, -1) > start:
            above.add(node)
            pending.extend(v for v in node.inputs if v is not None)
    way: set[ir.Node] = set()
    for node in sorted(above, key=place.__getitem__):
        if any(v is early or (v is not None and v.producer() in way) for v in node.inputs):
            way.add(node)
    return way if late.producer() in way else set()
