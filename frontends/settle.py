"""What the rest of graphpress relies on, whatever file a graph came from: names, order, weights that are constants."""

from __future__ import annotations

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


def _roots(model: ir.Model) -> list[edit.Scope]:
    return [model.graph, *model.functions.values()]


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
