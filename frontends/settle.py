"""What the rest of graphpress relies on, whatever file a graph came from: names, order, weights that are constants."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import onnx_ir as ir

from graphpress.errors import InvalidModel
from graphpress.graph import edit

T = TypeVar("T")
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
    names = _FreshNames({n.name for n in nodes if n.name})
    seen: set[str] = set()
    for i, node in enumerate(nodes):
        if not node.name:
            node.name = names.free(f"{node.op_type}_{i}")
        elif node.name in seen:
            node.name = names.free(node.name)
        seen.add(node.name)
    for root in _roots(model):
        _unique_values(root)


def _roots(model: ir.Model) -> list[edit.Scope]:
    return [model.graph, *model.functions.values()]


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
            found = (circle({n: list(_reads(n)) for n in graph}) for graph in (root, *root.subgraphs()))
            names = [repr(n.name) for n in next(filter(None, found), [])]
            names[8:] = ["..."] if len(names) > 8 else []
            raise InvalidModel(f"nodes read one another in a circle: {' <- '.join(names)}") from e


def circle(follows: Mapping[T, Iterable[T]]) -> list[T]:
    """One circle of those that ``follows`` leads through, or nothing. In the time of one look at each entry."""
    done: set[T] = set()
    for root in follows:
        path = {} if root in done else {root: iter(follows[root])}
        while path:
            at, rest = next(reversed(path.items()))
            step = next((s for s in rest if s in follows and s not in done), None)
            if step is None:
                done.add(at)
                del path[at]
            elif step in path:
                return list(path)[list(path).index(step) :]
            else:
                path[step] = iter(follows[step])
    return []


def _reads(node: ir.Node) -> Iterator[ir.Node]:
    inner = [n for graph in edit.subgraphs(node) for n in graph.all_nodes()]
    for reader in (node, *inner):
        yield from (p for v in reader.inputs if v is not None and (p := v.producer()) is not None)
