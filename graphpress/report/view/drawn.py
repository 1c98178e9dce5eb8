"""What of a model is drawn: its operators less those that only make constants, and what flows between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from graphpress.graph import edit


@dataclass(frozen=True)
class Drawn:
    """One box: an operator, or an input or output of the graph.

    Attributes:
        name: Unique among its model's boxes; of inputs and outputs that of the value.
        op: The operator with its domain, ``input`` or ``output``.
        node: None for inputs and outputs.
    """

    name: str
    op: str
    node: ir.Node | None
    value: ir.Value | None = None


@dataclass(frozen=True)
class Drawing:
    """Boxes in the order of the graph, and (from, to, value) by their places in that list."""

    boxes: list[Drawn]
    edges: list[tuple[int, int, str]]


def drawing(model: ir.Model) -> Drawing:
    """The main graph and the bodies in it; functions stand for themselves."""
    nodes = [n for graph in edit.scopes(model.graph) for n in graph]
    still = _constants(nodes)
    boxes = [Drawn(v.name or "?", "input", None, v) for v in model.graph.inputs if not v.is_initializer()]
    boxes += [Drawn(n.name or "?", _op(n), n) for n in nodes if n not in still]
    boxes += [Drawn(v.name or "?", "output", None, v) for v in model.graph.outputs]
    place = {id(b.node): i for i, b in enumerate(boxes) if b.node is not None}
    source = {id(o): place[id(b.node)] for b in boxes if b.node is not None for o in b.node.outputs}
    source |= {id(b.value): i for i, b in enumerate(boxes) if b.op == "input"}
    for inner, outer in _handed(nodes):
        if id(outer) in source:
            source[id(inner)] = source[id(outer)]
    edges: dict[tuple[int, int, str], None] = {}
    for at, box in enumerate(boxes):
        for value in _reads(box):
            start = source.get(id(value))
            if start is not None and start != at:
                edges[start, at, value.name or ""] = None
    return Drawing(boxes, list(edges))


def _handed(nodes: list[ir.Node]) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Inputs of the bodies of Loop and Scan with what the first iteration finds there; the outer bodies first."""
    for node in nodes:
        first = {"Loop": 2, "Scan": 0}.get(node.op_type if not node.domain else "")  # those of Loop count and ask
        for body in edit.subgraphs(node) if first is not None else ():
            pairs = zip(list(body.inputs)[first:], node.inputs[first:], strict=False)
            yield from ((inner, outer) for inner, outer in pairs if outer is not None)


def _reads(box: Drawn) -> Iterator[ir.Value]:
    """What flows into a box: its inputs, and what a body of it gives."""
    if box.node is None:
        if box.op == "output" and box.value is not None:
            yield box.value
        return
    yield from (v for v in box.node.inputs if v is not None)
    for body in edit.subgraphs(box.node):
        yield from body.outputs


def _constants(nodes: list[ir.Node]) -> set[ir.Node]:
    """Nodes that only make constants of constants, such as what decodes a weight: said of who reads them."""
    found: set[ir.Node] = set()
    for node in nodes:
        given = [v for v in node.inputs if v is not None]
        fixed = bool(given) and all(edit.is_constant(v) or v.producer() in found for v in given)
        if (fixed or node.op_type == "Constant") and not any(o.is_graph_output() for o in node.outputs):
            found.add(node)
    return found


def _op(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type
