"""Which of our nodes each node of ONNX Runtime's optimised graph computes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.graph.grid import is_quantize

# What ONNX Runtime hangs on names; the prefix is that of a branch it moved out of its If.
_ADDED = re.compile(r"^(_if_(then|else)_branch_)+|(_token_\d+|_nchwc|/duplicated)+$")
CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
LAYOUT = frozenset({"ReorderInput", "ReorderOutput", "Transpose"})
_ABSORBED = ("Relu", "Clip")


@dataclass
class ExecutedNode:
    """A node of the optimised graph, the node of ours that it stands for (``base``), and all that it computes."""

    node: onnx.NodeProto
    base: ir.Node | None = None
    covers: list[ir.Node] = field(default_factory=list)


def trace(model: ir.Model, graph: onnx.GraphProto) -> list[ExecutedNode]:
    """Every node of the optimised graph, subgraphs included, with what it computes of ``model``.

    Names are tried first, then outputs, which fusions keep. From there the walk goes back over nodes that no other
    kernel stands for and that no QuantizeLinear cuts off.
    """
    names = {n.name: n for n in edit.nodes(model)}
    makers = {o.name: n for n in edit.nodes(model) for o in n.outputs if o.name}
    ran = [ExecutedNode(n) for n in all_nodes(graph)]
    for r in ran:
        r.base = _base(r.node, names, makers)
    claimed = {id(r.base) for r in ran if r.base is not None}
    for r in ran:
        if r.base is not None and r.base.op_type not in CONVERSIONS:
            r.covers = list(_covered(r, makers, claimed))
    return ran


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the bodies in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from all_nodes(attribute.g)


def plain(name: str) -> str:
    """A name without what ONNX Runtime added to it."""
    return _ADDED.sub("", name)


def _base(node: onnx.NodeProto, names: dict[str | None, ir.Node], makers: dict[str, ir.Node]) -> ir.Node | None:
    found = names.get(node.name) or names.get(plain(node.name))
    for value in (*node.output, node.name):  # the blocked layout names nodes after what they give
        made = None if found is not None else makers.get(value) or makers.get(plain(value))
        if made is not None:
            found = made if node.op_type in CONVERSIONS else _behind_quantizer(made)
    if node.op_type in LAYOUT and (found is None or found.op_type != node.op_type):
        return None  # a change of layout that ONNX Runtime put there
    return found


def _behind_quantizer(node: ir.Node) -> ir.Node:
    source = node.inputs[0].producer() if is_quantize(node) and node.inputs[0] is not None else None
    return source or node


def _covered(r: ExecutedNode, makers: dict[str, ir.Node], claimed: set[int]) -> Iterator[ir.Node]:
    assert r.base is not None
    made = [makers[o] for o in map(plain, r.node.output) if o in makers]
    pending = [r.base, *(_behind_quantizer(n) for n in made), *_ahead(r.base)]
    seen: set[int] = set()
    while pending:
        node = pending.pop()
        mine = node is r.base or id(node) not in claimed
        if id(node) in seen or not mine or node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear"):
            continue
        seen.add(id(node))
        yield node
        pending += [p for v in node.inputs if v is not None and (p := v.producer()) is not None]


def _ahead(node: ir.Node) -> Iterator[ir.Node]:
    """The Relu or Clip that a kernel may take in behind itself."""
    while node.outputs and len(uses := list(node.outputs[0].uses())) == 1 and uses[0].node.op_type in _ABSORBED:
        node = uses[0].node
        yield node
