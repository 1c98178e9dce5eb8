"""From measured tables to the problem that the search solves, with the conversions between neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from graphpress.passes.allocate.formats import FLOAT
from graphpress.passes.allocate.meter import Times
from graphpress.passes.allocate.parts import Parts
from graphpress.passes.allocate.problem import OUTSIDE, Candidate, Link, Problem, Variable
from graphpress.passes.allocate.seams import passes, readers, settled
from graphpress.passes.allocate.sensitivity import Sensitivity
from graphpress.passes.allocate.space import Group
from graphpress.passes.quantize.kernels import refusal
from graphpress.report import report as reports
from graphpress.types import Kind, Role

INTEGER = "integer"  # the other choice of an operator without weights


@dataclass
class Tables:
    """What was measured: drops, bytes by operator and format, times (empty where nothing was timed)."""

    sensitivity: Sensitivity
    sizes: dict[str, dict[str, int]]
    times: Times
    latency: float = 0.0  # of the float model, ms


def sizes(parts: Parts) -> dict[str, dict[str, int]]:
    """Bytes that each operator stores in each format, scales, zero points and integer biases included (formula C3)."""
    found: dict[str, dict[str, int]] = {}
    for node, formats in parts.space.wanted().items():
        found[node] = {FLOAT: reports.stored_bytes(parts.parts[node].model)}
        for name in formats:
            if not isinstance(parts.quantized(node, name), str):
                found[node][name] = reports.stored_bytes(parts.folded(node, name))
    return found


def build(parts: Parts, tables: Tables) -> Problem:
    """Variables in order of the graph: groups by their first operator, then what may join static ones."""
    space = parts.space
    static = space.static
    place = {n.name: i for i, n in enumerate(space.model.graph)}
    variables = [_variable(parts, tables, g) for g in space.groups]
    if static is not None:
        variables += [_free(node, tables.times) for node in space.light]
    variables.sort(key=lambda v: place[v.nodes[0]])
    links = list(_links(parts, variables, tables.times)) if static is not None else []
    variables = [_reachable(i, v, variables, links) for i, v in enumerate(variables)]
    size = reports.stored_bytes(space.model)
    return Problem(tuple(variables), tuple(links), float(size), tables.latency)


def _variable(parts: Parts, tables: Tables, group: Group) -> Variable:
    choices = [Candidate(FLOAT)]
    for name in group.formats[1:]:
        if any((n, name) in tables.sensitivity.refused for n in group.nodes):
            continue
        drop = sum(tables.sensitivity.drops[n][name] for n in group.nodes)
        shared = _shared(parts, group)
        size = sum(tables.sizes[n][name] - tables.sizes[n][FLOAT] for n in group.nodes if n not in shared)
        times = [tables.times.parts[n] for n in group.nodes if n in tables.times.parts]
        latency = sum(t[name] - t[FLOAT] for t in times)
        reads = any(parts.space.is_static(n, name) for n in group.nodes)
        sites = [(s, v) for n in group.nodes for s, v in parts.schemes(n, name).items()]
        gives = any(s.role is Role.OUTPUT for s, _ in sites)
        keeps = all(s.role is Role.WEIGHT and v.granularity.kind is not Kind.GROUP for s, v in sites)
        choices.append(Candidate(name, drop, float(size), latency, reads, gives, keeps))
    static = next((c for c in choices if c.reads and c.latency), None)
    if static is not None:
        kept = (c for c in choices if c.keeps and all(_joins(parts, n, c.format, static.format) for n in group.nodes))
        choices += [replace(c, latency=static.latency, reads=True, gives=static.gives, joined=True) for c in kept]
    size = sum(tables.sizes[n][FLOAT] for n in group.nodes if n not in _shared(parts, group))
    return Variable(group.name, group.nodes, tuple(choices), size=float(size))


def _reachable(index: int, variable: Variable, variables: list[Variable], links: list[Link]) -> Variable:
    """Without choices that are joined to codes which nobody could hand it."""
    sources = {x.source for x in links if index in x.readers}
    if all(s != OUTSIDE and any(c.gives and not c.joined for c in variables[s].choices) for s in sources):
        return variable
    return replace(variable, choices=tuple(c for c in variable.choices if not c.joined))


def _joins(parts: Parts, node: str, name: str, static: str) -> bool:
    """Whether the integer kernel takes the weights of a format of weights alone, where activations come in codes."""
    found, target = parts.space.nodes().get(node), parts.space.target
    if target is None or found is None:
        return False
    weights = parts.schemes(node, name)
    computed = {s: v for s, v in parts.schemes(node, static).items() if s.role is not Role.WEIGHT}
    return refusal(target, found, {**computed, **weights}) is None


def _shared(parts: Parts, group: Group) -> set[str]:
    """Operators whose weight another one of the group, before it, holds already."""
    seen: set[str] = set()
    found = set()
    for node in group.nodes:
        held = {n for n, v in parts.parts[node].model.graph.initializers.items() if len(v.shape or ()) > 1}
        if held and held <= seen:
            found.add(node)
        seen |= held
    return found


def _free(node: str, times: Times) -> Variable:
    row = times.parts.get(node, {FLOAT: 0.0, INTEGER: 0.0})
    name = next(f for f in row if f != FLOAT)
    integer = Candidate(INTEGER, latency=row[name] - row[FLOAT], reads=True, gives=True, soft=True)
    return Variable(node, (node,), (Candidate(FLOAT), integer), free=True)


def _links(parts: Parts, variables: list[Variable], times: Times) -> Iterator[Link]:
    """One link for each value that somebody could write or wants to read as integers."""
    owner = {n: i for i, v in enumerate(variables) for n in v.nodes}
    graph = parts.space.model.graph
    nodes = {n.name: n for n in graph if n.name is not None and n.name in owner}
    gives = {i for i, v in enumerate(variables) if any(c.gives for c in v.choices)}
    reads = {i for i, v in enumerate(variables) if any(c.reads for c in v.choices)}
    sources = [(owner[name], v) for name, n in nodes.items() for v in settled(n)]
    known = {v for _, v in sources}
    outside = [v for v in (*graph.inputs, *(o for n in graph for o in n.outputs)) if v not in known]
    made = (v for v in outside if (p := v.producer()) is None or (p.name not in owner and not passes(p)))
    for source, value in [*sources, *((OUTSIDE, v) for v in made)]:
        found = dict.fromkeys(owner.get(r, OUTSIDE) for r in readers(value, owner))
        if (source in gives and set(found) != {source}) or any(r in reads for r in found):
            extra = tuple(_bias(nodes, variables, r, value) for r in found)
            yield _link(source, value, tuple(found), extra, times)


def _link(source: int, value: ir.Value, readers: tuple[int, ...], extra: tuple[float, ...], times: Times) -> Link:
    """As it was timed with its neighbours; else by what conversions take alone."""
    name = value.name or ""
    if name in times.seams:
        seam = times.seams[name]
        return Link(source, readers, seam.up, seam.down, extra, seam.kept)
    up = times.up.get(name, 0.0) or _any(times.up, value)
    return Link(source, readers, up, times.down.get(name, up), extra)


def _bias(nodes: Mapping[str, ir.Node], variables: list[Variable], reader: int, value: ir.Value) -> float:
    """Bytes more in the biases of those operators of a reader that read the value, stored as int32 with their grid."""
    names = variables[reader].nodes if reader != OUTSIDE else ()
    mine = [nodes[n] for n in names if nodes[n].op_type in ("Conv", "Gemm") and n in readers(value, {n: 0})]
    held = [n.inputs[2].const_value for n in mine if len(n.inputs) > 2 and n.inputs[2] is not None]
    return float(sum(8 * t.size for t in held if t is not None))  # a scale and a zero point of four bytes each


def _any(times: dict[str, float], value: ir.Value) -> float:
    """The time of a value that only data movement stands between it and a timed one."""
    pending = [u.node for u in value.uses() if passes(u.node)]
    while pending:
        node = pending.pop()
        for out in node.outputs:
            if out.name in times:
                return times[out.name]
            pending += [u.node for u in out.uses() if passes(u.node)]
    return 0.0
