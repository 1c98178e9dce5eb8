"""Attention heads: what one Attention, or a softmax between two products, reads as queries, keys and values."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from graphpress.graph import edit
from graphpress.graph.movement import Way, moves
from graphpress.passes.structure.channels.commuting import survey
from graphpress.passes.structure.channels.follow import Carried, follow
from graphpress.passes.structure.channels.lanes import covers, dims, size
from graphpress.passes.structure.channels.moves import READER, WRITER, Move
from graphpress.passes.structure.channels.survey import Survey

_BETWEEN = (
    "Softmax", "Add", "Mul", "Div", "Sub", "Where", "Cast", "Dropout", "Identity", "Tanh", "Clip", "Reshape", "Max",
    "IsNaN", "Expand", "Squeeze", "Unsqueeze",
)  # fmt: skip
_COPIES = (Way.VIEW, Way.REORDER, Way.REPEAT)
_LONGEST = 24  # nodes between the two products of an attention
Edge: TypeAlias = tuple[ir.Node, int, int]
"""A node, the input that it reads, and the axis of a head's channels in that."""


@dataclass(frozen=True, eq=False)
class Heads:
    """One attention.

    Attributes:
        node: The Attention, or the product of the softmax and the values.
        query: Where the queries are read.
        key: Likewise the keys; of a product they may be transposed.
        value: Likewise the values.
        size: Channels of a head of the queries and keys.
        value_size: Channels of a head of the values.
        count: Query heads, where known.
        key_count: Key and value heads, where known.
    """

    node: ir.Node
    query: Edge
    key: Edge
    value: Edge
    size: int
    value_size: int
    count: int | None
    key_count: int | None

    @property
    def name(self) -> str:
        return self.node.name or "?"

    def values(self, found: Survey) -> Carried:
        """The class of what the values are computed from and go to, one head at a time."""
        node, slot, axis = self.value
        value = node.inputs[slot]
        assert value is not None
        return follow(found, value, axis, self.value_size)

    @staticmethod
    def fixed(carried: Carried, turned: Set[ir.Value]) -> str:
        """Why its values cannot change basis, or "".

        Args:
            carried: Their class.
            turned: What is turned already.
        """
        if carried.blocks:
            return f"{carried.blocks[0].where}: {carried.blocks[0].why}"
        if carried.norms:
            return f"{next(iter(carried.norms)).name} normalizes them"
        if carried.members.keys() & turned:
            return "they are part of a stream that is turned already"
        for side in (WRITER, READER):
            if not any(not h.summand for h in carried.side(side)):
                return f"no linear layer is their {side}"
        return ""


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
    if any((width or 0) % each for width, each in zip(widths, (head, head, of_value), strict=True)):
        return None
    query, key, value = ((node, i, -1) for i in range(3))
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
    if size(scores.inputs[1], -2) is None:
        return None
    count, key_count = (s[-3] if len(s) > 2 and isinstance(s[-3], int) else None for s in (of_scores, shape))
    return Heads(node, (scores, 0, -1), (scores, 1, -2), (node, 1, -1), head, of_value, count, key_count)


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


def before_copies(node: ir.Node, slot: int, axis: int, extent: int) -> tuple[ir.Node, int] | str:
    """The earliest edge that holds what ``node`` reads at ``slot`` with the channels last, before it is copied.

    Keys that several query heads share are repeated before their product; what is done to them is cheapest before.
    """
    value, edges = node.inputs[slot], [(node, slot)]
    start = value
    while start is not None and (maker := start.producer()) is not None and moves(maker, *_COPIES):
        if len(start.uses()) != 1 or start.is_graph_output():
            break
        edges.append((maker, 0))
        start = maker.inputs[0]
    while edges and value is not None:
        reader, at = edges.pop()
        start = reader.inputs[at]
        copies = [n for n, _ in reversed([*edges, (reader, at)][1:])]
        carried = follow(survey(copies, Move.ROTATE, start=start), value, axis, extent)
        if not carried.blocks and start is not None and covers(carried.members[start], start, -1):
            return reader, at
    return "the keys' channels are nowhere the last axis"


def _is(node: ir.Node, *kinds: str) -> bool:
    return node.domain == "" and node.op_type in kinds
