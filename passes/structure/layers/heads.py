"""Attention heads: what one Attention, or a softmax between two products, reads as queries, keys and values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphpress.graph import edit
from graphpress.graph.movement import Way, moves
from graphpress.passes.structure.channels.ask import IN, OUT, Ask, Move
from graphpress.passes.structure.channels.commuting import answer
from graphpress.passes.structure.channels.follow import Carried, follow
from graphpress.passes.structure.channels.lanes import Lanes, covers, dims, size, whole
from graphpress.passes.structure.layers.norms import Norm

_BETWEEN = (
    "Softmax", "Add", "Mul", "Div", "Sub", "Where", "Cast", "Dropout", "Identity", "Tanh", "Clip", "Reshape", "Max",
    "IsNaN", "Expand", "Squeeze", "Unsqueeze",
)  # fmt: skip
_COPIES = (Way.VIEW, Way.REORDER, Way.REPEAT)
_LONGEST = 24  # nodes between the two products of an attention


@dataclass(frozen=True, eq=False)
class Heads:
    """One attention.

    Attributes:
        node: The Attention, or the product of the softmax and the values.
        query: Node and input that read the queries, and where a head's channels are in them.
        key: Likewise the keys; of a product they may be transposed.
        value: Likewise the values.
        size: Channels of a head of the queries and keys.
        value_size: Channels of a head of the values.
        count: Query heads, where known.
        key_count: Key and value heads, where known.
    """

    node: ir.Node
    query: tuple[ir.Node, int, Lanes]
    key: tuple[ir.Node, int, Lanes]
    value: tuple[ir.Node, int, Lanes]
    size: int
    value_size: int
    count: int | None
    key_count: int | None

    @property
    def name(self) -> str:
        return self.node.name or "?"

    def values(self, norms: Mapping[ir.Node, Norm]) -> Carried:
        """The class of what the values are computed from and go to, one head at a time."""
        node, slot, lanes = self.value
        value = node.inputs[slot]
        assert value is not None
        return follow(value, lanes, extent=self.value_size, norms=norms)


def find_heads(nodes: Iterable[ir.Node]) -> list[Heads]:
    """The attentions among some nodes, in their order."""
    found = (_fused(n) if _is(n, "Attention") else _product(n) if _is(n, "MatMul") else None for n in nodes)
    return [heads for heads in found if heads is not None]


def _fused(node: ir.Node) -> Heads | None:
    shapes = [dims(v) for v in node.inputs[:3]]
    ranks = {len(s) if s is not None else None for s in shapes}
    if ranks == {4}:
        count, key_count = (s[1] if s is not None and isinstance(s[1], int) else None for s in shapes[:2])
    elif ranks == {3}:
        count, key_count = edit.attribute(node, "q_num_heads"), edit.attribute(node, "kv_num_heads")
    else:
        return None
    side, key_side = (1, 1) if ranks == {4} else (count or 0, key_count or 0)
    widths = [size(v, -1) for v in node.inputs[:3]]
    if None in widths or not side or not key_side:
        return None
    head, of_value = (widths[0] or 0) // side, (widths[2] or 0) // key_side
    places = [whole(v, -1, s) for v, s in zip(node.inputs, (head, head, of_value), strict=False) if v is not None]
    if len(places) < 3 or any(p is None for p in places):
        return None
    query, key, value = ((node, i, p) for i, p in enumerate(places[:3]) if p is not None)
    return Heads(node, query, key, value, head, of_value, count, key_count)


def _product(node: ir.Node) -> Heads | None:
    """A product whose left operand comes from a softmax of the product of two computed values."""
    values = node.inputs[1]
    if values is None or edit.is_constant(values) or (scores := _scores(node.inputs[0])) is None:
        return None
    shape, of_scores = dims(values), dims(scores.inputs[0])
    head, of_value = size(scores.inputs[0], -1), size(values, -1)
    if shape is None or of_scores is None or head is None or of_value is None or scores.inputs[1] is None:
        return None
    keys = whole(scores.inputs[1], -2)
    queries = whole(scores.inputs[0], -1) if scores.inputs[0] is not None else None
    place = whole(values, -1)
    if keys is None or queries is None or place is None:
        return None
    count, key_count = (s[-3] if len(s) > 2 and isinstance(s[-3], int) else None for s in (of_scores, shape))
    return Heads(node, (scores, 0, queries), (scores, 1, keys), (node, 1, place), head, of_value, count, key_count)


def _scores(value: ir.Value | None) -> ir.Node | None:
    """The product of queries and keys behind a softmax that gives ``value``."""
    pending, seen, softmax = [value], 0, False
    while pending and seen < _LONGEST:
        node = v.producer() if (v := pending.pop(0)) is not None else None
        if node is None:
            continue
        seen += 1
        softmax = softmax or _is(node, "Softmax")
        if _is(node, "MatMul"):
            computed = not any(edit.is_constant(v) for v in node.inputs)
            return node if softmax and computed else None
        if _is(node, *_BETWEEN):
            pending.extend(v for v in node.inputs if v is not None and not edit.is_constant(v))
    return None


def before_copies(node: ir.Node, slot: int, lanes: Lanes, extent: int) -> tuple[ir.Node, int, Lanes] | str:
    """The earliest edge that holds what ``node`` reads at ``slot`` with the channels last, before it is copied.

    Keys that several query heads share are repeated before their product; what is done to them is cheapest before.
    """
    value = node.inputs[slot]
    best = (node, slot, lanes) if covers(lanes, value, -1) else None
    while value is not None and (maker := value.producer()) is not None and moves(maker, *_COPIES):
        said = answer(Ask(maker, (OUT, 0), lanes, Move.ROTATE, extent))
        if isinstance(said, str) or (IN, 0) not in said.ties or len(value.uses()) != 1 or value.is_graph_output():
            break
        node, slot, value, lanes = maker, 0, maker.inputs[0], said.ties[IN, 0]
        if covers(lanes, value, -1):
            best = (node, slot, lanes)
    return best or "the keys' channels are nowhere the last axis"


def _is(node: ir.Node, *kinds: str) -> bool:
    return node.domain == "" and node.op_type in kinds
