"""Which operators share so much that they must get one format: a scale, a weight, what they read, an addition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import onnx_ir as ir

from graphpress.errors import BadRequest, nearest
from graphpress.graph import edit
from graphpress.passes.quantize import operators
from graphpress.types import Plan, Role, Site

KINDS = ("scales", "weights", "inputs", "residual")


def groups(nodes: Sequence[ir.Node], plan: Plan, kinds: Iterable[str]) -> list[tuple[str, ...]]:
    """A partition of the operators, each part in order of the graph, ordered by its first operator.

    Args:
        nodes: Operators with weights, in order of the graph.
        plan: All of them quantized statically; its ties say whose outputs share a scale (Concat, data movement).
        kinds: ``scales``: outputs that ``plan`` ties; ``weights``: readers of one constant; ``inputs``: readers of one
            computed value (q, k, v; a block and its shortcut); ``residual``: the two that one Add adds up directly.

    Raises:
        BadRequest: A kind that does not exist.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise BadRequest("is no kind of tie", where=f"allocate: option 'ties', {kind!r}", fix=nearest(kind, KINDS))
    parent = {n: n for n in nodes}

    def root(node: ir.Node) -> ir.Node:
        while parent[node] is not node:
            node = parent[node]
        return node

    finders = {"scales": lambda: _scales(nodes, plan), "weights": lambda: _weights(nodes)}
    finders |= {"inputs": lambda: _inputs(nodes), "residual": lambda: _residual(nodes)}
    for kind in kinds:
        for first, *others in finders[kind]():
            for other in others:
                parent[root(other)] = root(first)
    parts: dict[ir.Node, list[str]] = {}
    for node in nodes:
        parts.setdefault(root(node), []).append(node.name or "")
    return [tuple(p) for p in parts.values()]


def _by(pairs: Iterable[tuple[object, ir.Node]]) -> Iterator[list[ir.Node]]:
    found: dict[object, list[ir.Node]] = {}
    for key, node in pairs:
        found.setdefault(key, []).append(node)
    yield from (n for n in found.values() if len(n) > 1)


def _inputs(nodes: Sequence[ir.Node]) -> Iterator[list[ir.Node]]:
    reads = ((v, n) for n in nodes if n.op_type != "Gather" for v in n.inputs[:2])
    return _by((v, n) for v, n in reads if v is not None and not edit.is_constant(v))


def _weights(nodes: Sequence[ir.Node]) -> Iterator[list[ir.Node]]:
    reads = ((n.inputs[s], n) for n in nodes for s in operators.WEIGHTS[n.op_type])
    return _by((v, n) for v, n in reads if edit.is_constant(v))


def _settled(nodes: Sequence[ir.Node]) -> dict[ir.Value, ir.Node]:
    """The operator that a value comes from, as it leaves it or behind its Relu."""
    found = {n.outputs[0]: n for n in nodes}
    clamps = ((operators.clamp_behind(n), n) for n in nodes)
    return found | {clamp.outputs[0]: n for clamp, n in clamps if clamp is not None}


def _residual(nodes: Sequence[ir.Node]) -> Iterator[list[ir.Node]]:
    source = _settled(nodes)
    adds = {u.node for v in source for u in v.uses() if u.node.op_type == "Add" and u.node.domain == ""}
    for add in adds:
        terms = [source[v] for v in add.inputs if v is not None and v in source]
        if len(terms) > 1:
            yield terms


def _scales(nodes: Sequence[ir.Node], plan: Plan) -> Iterator[list[ir.Node]]:
    """Operators whose results stand in one tie, or in ties that meet in a value."""
    import networkx as nx

    graph, source = nx.Graph(), _settled(nodes)
    named = {n.name: n for n in nodes[0].graph or ()} if nodes else {}
    for tie in plan.ties:
        values = [v for s in tie if (v := _value(named.get(s.node), s)) is not None]
        graph.add_nodes_from(values)
        graph.add_edges_from((values[0], v) for v in values[1:])
    for part in nx.connected_components(graph):
        tied = list(dict.fromkeys(source[v] for v in part if v in source))
        if len(tied) > 1:
            yield tied


def _value(node: ir.Node | None, site: Site) -> ir.Value | None:
    if node is None:
        return None
    slots = node.outputs if site.role is Role.OUTPUT else node.inputs
    return slots[site.slot] if site.slot < len(slots) else None
