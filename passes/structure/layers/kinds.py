"""What layers are there for, by data flow: attention within a sequence, over time, to another one; feed-forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set

import onnx_ir as ir

from graphpress.graph import edit
from graphpress.passes.structure.layers.axes import Key, axes, keys
from graphpress.passes.structure.layers.ffn import layer_blocks
from graphpress.passes.structure.layers.heads import Heads, find_heads
from graphpress.passes.structure.layers.linear import Linear, linear

SELF, TEMPORAL, CROSS, FFN = "self-attention", "temporal-attention", "cross-attention", "feed-forward"
KINDS = (SELF, TEMPORAL, CROSS, FFN)
_FURTHEST = 64  # nodes between a product of an attention and the layers before or behind it


def kinds(graph: ir.Graph) -> dict[str, str]:
    """Node name -> one of ``KINDS``, of the layers of attentions and feed-forward blocks.

    An attention is to another sequence where the layers of its keys read other values than those of its queries. One
    that joins two sequences, and reads both on both sides, is attention within one. Where some attentions go along one
    axis of an input and others along another, as over the frames of a video and over the positions in a frame, those
    along the outer axis are over time.
    """
    found: dict[str, str] = {}
    attentions = find_heads(list(graph))
    temporal = _temporal(graph, attentions)
    for heads in attentions:
        query, key, value = (_before(node.inputs[slot]) for node, slot, _ in (heads.query, heads.key, heads.value))
        if query and key:
            within = TEMPORAL if heads in temporal else SELF
            kind = within if {n.inputs[0] for n in query} == {n.inputs[0] for n in key} else CROSS
            for node in (*query, *key, *value, *_behind(heads.node)):
                found.setdefault(node.name or "", kind)
    for block in layer_blocks(graph).blocks:
        for part in (block.up, block.gate, block.down):
            if part is not None:
                found.setdefault(part.node.name or "", FFN)
    return found


def _temporal(graph: ir.Graph, attentions: Sequence[Heads]) -> list[Heads]:
    """Those along an axis outside of the one that another goes along."""
    known, along = axes(graph), dict[Heads, frozenset[Key]]()
    for heads in attentions:
        node, slot, _ = heads.query
        value = node.inputs[slot]
        found = known.get(value) if value is not None else None
        if found is not None and len(found) > 1:
            along[heads] = keys(found[-2])
    return [heads for heads, mine in along.items() if any(_outside(mine, other) for other in along.values())]


def _outside(mine: Set[Key], other: Set[Key]) -> bool:
    """Whether two have no element in common and ``mine`` is the outer one, both of one input.

    Windows and grids of an image cut each of its axes in two, and none of these goes around the other.
    """
    if not mine or not other or any(a[: len(b)] == b or b[: len(a)] == a for a in mine for b in other):
        return False
    (of_mine, of_other) = ({k[:2] for k in found} for found in (mine, other))
    one_input = len({number for number, _ in of_mine | of_other}) == 1
    apart = of_mine.isdisjoint(of_other) or len(of_mine | of_other) == 1
    return one_input and apart and min(mine) < min(other)


def _before(value: ir.Value | None) -> list[ir.Node]:
    """The nearest layers that a value comes from."""
    maker = value.producer() if value is not None else None
    return _nearest([maker] if maker is not None else [], _makers)


def _makers(node: ir.Node) -> list[ir.Node]:
    return [maker for value in edit.reads(node) if (maker := value.producer()) is not None]


def _behind(node: ir.Node) -> list[ir.Node]:
    """The nearest layers that the outputs of a node go to."""
    return _nearest(_readers(node), _readers)


def _readers(node: ir.Node) -> list[ir.Node]:
    return [reader for value in node.outputs for reader in value.consumers()]


def _nearest(pending: list[ir.Node], onwards: Callable[[ir.Node], Iterable[ir.Node]]) -> list[ir.Node]:
    found, seen = list[ir.Node](), set[ir.Node]()
    while pending and len(seen) < _FURTHEST:
        node = pending.pop(0)
        if node in seen:
            continue
        seen.add(node)
        if isinstance(linear(node), Linear):
            found.append(node)
        else:
            pending.extend(onwards(node))
    return found
