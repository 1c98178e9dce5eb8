"""What the rest of graphpress relies on, whatever file a graph came from: names, order, weights that are constants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from graphpress import edit
from graphpress.errors import InvalidModel

# Operators whose float operands are weights. An infinity there can only be damage; elsewhere it may be a mask.
LAYERS = {
    "Attention", "BatchNormalization", "Conv", "ConvTranspose", "DeformConv", "Einsum", "FusedConv", "FusedGemm",
    "FusedMatMul", "GRU", "Gemm", "GroupNormalization", "InstanceNormalization", "LSTM", "LayerNormalization", "MatMul",
    "PRelu", "QuantizeLinear", "RMSNormalization", "RNN", "SimplifiedLayerNormalization", "SkipLayerNormalization",
}  # fmt: skip


def unique_names(model: ir.Model) -> None:
    """Give every node a name of its own in the whole model, and every value one among the main graph and its subgraphs.

    Names that are unique stay; values of the main graph keep theirs. An empty node name becomes type and position.
    """
    nodes = list(edit.nodes(model))
    taken = {n.name for n in nodes if n.name}
    seen: set[str] = set()
    for i, node in enumerate(nodes):
        if not node.name:
            node.name = _free(f"{node.op_type}_{i}", taken)
        elif node.name in seen:
            node.name = _free(node.name, taken)
        seen.add(node.name)
    for root in _roots(model):
        _unique_values(root)


def _roots(model: ir.Model) -> list[edit.Scope]:
    return [model.graph, *model.functions.values()]


def _unique_values(root: edit.Scope) -> None:
    graphs = [root, *root.subgraphs()]
    if len(graphs) == 1:
        return  # one scope, whose names the file's check has found unique
    taken = {v.name for graph in graphs for v in _definitions(graph) if v.name}
    seen: set[str] = set()
    for graph in graphs:
        for value in _definitions(graph):
            if value.name and value.name in seen:
                value.name = _free(value.name, taken)
            seen.add(value.name or "")


def _definitions(graph: edit.Scope) -> Iterator[ir.Value]:
    yield from graph.inputs
    if isinstance(graph, ir.Graph):
        yield from [v for v in graph.initializers.values() if not v.is_graph_input()]
    for node in graph:
        yield from node.outputs


def _free(base: str, taken: set[str]) -> str:
    name, i = base, 1
    while name in taken:
        name, i = f"{base}_{i}", i + 1
    taken.add(name)
    return name


def freeze_inputs(model: ir.Model, which: bool | None) -> None:
    """Take initializers off the list of inputs, which makes constants of them.

    Up to IR version 3 every initializer had to be an input, so there it says nothing. Later an input with an
    initializer is an optional input with a default; but an exporter that lists every initializer, weights of layers
    among them, keeps the old habit (torch's ``keep_initializers_as_inputs``) and means constants.

    Args:
        model: Changed in place.
        which: True freezes all, False only what the IR version demands, None goes by the rule above.
    """
    graph = model.graph
    listed = [v for v in graph.inputs if v.is_initializer()]
    old = model.ir_version < 4
    habit = len(listed) == len(graph.initializers) and any(_feeds_layer(v) for v in listed)
    if listed and (old or which or (which is None and habit)):
        graph.inputs[:] = [v for v in graph.inputs if not v.is_initializer()]
        model.ir_version = max(model.ir_version, 4)


def _feeds_layer(value: ir.Value) -> bool:
    return any(u.node.op_type in LAYERS for u in value.uses())


def sort(model: ir.Model) -> None:
    """Put nodes after what they read; nodes that are in order stay where they are.

    Raises:
        InvalidModel: Some read one another in a circle.
    """
    for root in _roots(model):
        try:
            root.sort()
        except ValueError as e:
            circle = next((c for g in (root, *root.subgraphs()) if (c := _circle(g))), [])
            names = " -> ".join(f"{n.name!r}" for n in circle[:8])
            raise InvalidModel(f"nodes read one another in a circle: {names}{' ...' if len(circle) > 8 else ''}") from e


def _circle(graph: Iterable[ir.Node]) -> list[ir.Node]:
    """One circle of nodes, or nothing."""
    waiting = {node: {p for p in _reads(node) if p.graph is node.graph} for node in graph}
    while free := [n for n, reads in waiting.items() if not reads & waiting.keys()]:
        for node in free:
            del waiting[node]
    path: list[ir.Node] = list(waiting)[:1]
    while path and path.count(path[-1]) < 2:
        path.append(next(iter(waiting[path[-1]] & waiting.keys())))
    return path[path.index(path[-1]) :][::-1] if path else []


def _reads(node: ir.Node) -> Iterator[ir.Node]:
    inner = [n for graph in edit.subgraphs(node) for n in graph.all_nodes()]
    for reader in (node, *inner):
        yield from (p for v in reader.inputs if v is not None and (p := v.producer()) is not None)
