"""Names that are unique, whatever a graph came from."""

from __future__ import annotations

import collections
from collections.abc import Iterator

import onnx_ir as ir

from graphpress.graph import edit


def unique_names(model: ir.Model) -> None:
    """Give every node a name of its own in the whole model, and every value one among the main graph and its subgraphs.

    Names that are unique stay; values of the main graph keep theirs. An empty node name becomes type and position.
    """
    nodes = list(edit.nodes(model))
    names = _FreshNames({n.name for n in nodes if n.name})
    seen: set[str] = set()
    for i, node in enumerate(nodes):
        if not node.name:
            node.name = names.free(f"{node.op_type}_{i}")
        elif node.name in seen:
            node.name = names.free(node.name)
        seen.add(node.name)
    unique_values(model)


def unique_values(model: ir.Model) -> None:
    """The part of ``unique_names`` about values. A function is a scope of its own, with its bodies."""
    roots: list[edit.Scope] = [model.graph, *model.functions.values()]
    for root in roots:
        _unique_values(root)


def _unique_values(root: edit.Scope) -> None:
    graphs = [root, *root.subgraphs()]
    if len(graphs) == 1:
        return  # one scope, whose names the file's check has found unique
    names = _FreshNames({v.name for graph in graphs for v in _definitions(graph) if v.name})
    seen: set[str] = set()
    for graph in graphs:
        for value in _definitions(graph):
            if value.name and value.name in seen:
                value.name = names.free(value.name)
            seen.add(value.name or "")


def _definitions(graph: edit.Scope) -> Iterator[ir.Value]:
    yield from graph.inputs
    if isinstance(graph, ir.Graph):
        yield from [v for v in graph.initializers.values() if not v.is_graph_input()]
    for node in graph:
        yield from node.outputs


class _FreshNames:
    """Names in use; gives free ones that begin as asked, the next number each time."""

    def __init__(self, taken: set[str]) -> None:
        self.taken = taken
        self.tried: collections.Counter[str] = collections.Counter()

    def free(self, base: str) -> str:
        name = base
        while name in self.taken:
            self.tried[base] += 1
            name = f"{base}_{self.tried[base]}"
        self.taken.add(name)
        return name
