"""What layers are there for, by data flow: attention within one sequence, attention to another one, feed-forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx_ir as ir

from graphpress.graph import edit
from graphpress.passes.structure.layers.ffn import layer_blocks
from graphpress.passes.structure.layers.heads import find_heads
from graphpress.passes.structure.layers.linear import Linear, linear

SELF, CROSS, FFN = "self-attention", "cross-attention", "feed-forward"
KINDS = (SELF, CROSS, FFN)
_FURTHEST = 64  # nodes between a product of an attention and the layers before or behind it


def kinds(graph: ir.Graph) -> dict[str, str]:
    """Node name -> one of ``KINDS``, of the layers of attentions and feed-forward blocks.

    An attention is to another sequence where the layers of its keys read other values than those of its queries. One
    that joins two sequences, and reads both on both sides, is attention within one.
    """
    found: dict[str, str] = {}
    for heads in find_heads(list(graph)):
        query, key, value = (_before(node.inputs[slot]) for node, slot, _ in (heads.query, heads.key, heads.value))
        if query and key:
            kind = SELF if {n.inputs[0] for n in query} == {n.inputs[0] for n in key} else CROSS
            for node in (*query, *key, *value, *_behind(heads.node)):
                found.setdefault(node.name or "", kind)
    for block in layer_blocks(graph).blocks:
        for part in (block.up, block.gate, block.down):
            if part is not None:
                found.setdefault(part.node.name or "", FFN)
    return found


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
