"""Where values go from one operator to others: what it takes there beyond what each of them takes alone.

Two float kernels of ONNX Runtime hand on their own layout; between a float and an integer kernel it is changed, and
codes are made of floats or floats of codes. None of that can be seen in either operator alone. So an operator and its
readers are timed together, in floats, in codes, and in either beside the other.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphpress.graph.cut import cut
from graphpress.graph.movement import interval
from graphpress.passes.allocate.formats import FLOAT
from graphpress.passes.allocate.parts import Parts, bare
from graphpress.passes.allocate.space import Schemes
from graphpress.passes.quantize import operators
from graphpress.types import Role

OUTSIDE = ""  # as a reader: what is always float
UP, DOWN, KEPT = "quantized", "dequantized", "kept"
STATES = (FLOAT, UP, DOWN, KEPT)


@dataclass(frozen=True)
class Seam:
    """A value that one operator writes and others read, through data movement, all by name."""

    value: str
    source: str
    readers: tuple[str, ...]

    @property
    def nodes(self) -> list[str]:
        """The source, then those readers that could be quantized."""
        return [self.source, *(r for r in self.readers if r != OUTSIDE)]


@dataclass(frozen=True)
class Seamed:
    """Milliseconds beside those of the operators alone, more than where all are float: see ``problem.Link``."""

    up: float
    down: float
    kept: float


def seams(parts: Parts) -> Iterator[Seam]:
    """Every value that an operator could write in codes and others could read so."""
    able = {n for n in (*parts.space.light, *parts.space.own) if static_format(parts, n) is not None}
    for node in parts.space.model.graph:
        if node.name in able and any(s.role is Role.OUTPUT for s in _static(parts, node.name or "")):
            for value in settled(node):
                found = dict.fromkeys(readers(value, able))
                if set(found) - {OUTSIDE}:
                    yield Seam(value.name or "", node.name or "", tuple(found))


def states(parts: Parts, seam: Seam) -> dict[str, ir.Model] | None:
    """The source and its readers as they are saved: by state; codes at integer edges.

    None where they cannot stand alone: a reader reads what another one writes, or a range is degenerate.
    """
    nodes = seam.nodes
    inner = _moved(parts.space.model, seam.value)
    edges = [i for n in nodes for i in parts.parts[n].inputs if i not in inner]
    outputs = [o for n in nodes[1:] for o in parts.parts[n].outputs]
    outputs += [seam.value] if OUTSIDE in seam.readers else []
    if set(edges) & set(outputs):
        return None
    whole = cut(parts.space.model, list(dict.fromkeys(edges)), outputs)
    found = {FLOAT: whole}
    for state, integer in ((UP, nodes[1:]), (DOWN, nodes[:1]), (KEPT, nodes)):
        plan = {s: v for n in integer for s, v in _static(parts, n).items()}
        made = parts.written(whole, plan)
        if isinstance(made, str):
            return None
        found[state] = bare(parts.fold(made))
    return found


def seam_costs(seam: Seam, took: Mapping[str, float], alone: Mapping[str, float]) -> Seamed:
    """From the times of the states, and of each operator in codes less that in floats."""
    source, others = alone[seam.source], sum(alone[r] for r in seam.nodes[1:])
    more = {state: ms - took[FLOAT] for state, ms in took.items()}
    return Seamed(max(more[UP] - others, 0.0), max(more[DOWN] - source, 0.0), more[KEPT] - source - others)


def static_format(parts: Parts, node: str) -> str | None:
    """The first format of an operator that reads calibrated activations."""
    if node in parts.space.light:
        return parts.space.static
    return next((f for f in parts.space.own.get(node, {}) if parts.space.is_static(node, f)), None)


def _static(parts: Parts, node: str) -> Schemes:
    name = static_format(parts, node)
    return parts.schemes(node, name) if name else {}


def _moved(model: ir.Model, name: str) -> set[str]:
    """The value, and what data movement makes of it."""
    found = {name}
    for node in model.graph:
        if passes(node) and node.inputs[0] is not None and node.inputs[0].name in found:
            found |= {o.name or "" for o in node.outputs}
    return found


def settled(node: ir.Node) -> list[ir.Value]:
    """What others read of an operator: behind its Relu or Clip, if it has one of its own."""
    clamp = operators.clamp_behind(node)
    return [clamp.outputs[0]] if clamp is not None else list(node.outputs)


def passes(node: ir.Node) -> bool:
    """Whether integers go through as they are."""
    return operators.moved(node) or interval(node) is not None


def readers(value: ir.Value, owner: Container[str]) -> Iterator[str]:
    """Operators that read a value, through data movement; OUTSIDE for what is always float."""
    if value.is_graph_output():
        yield OUTSIDE
    for use in value.uses():
        name = use.node.name or ""
        if name in owner:
            yield name
        elif passes(use.node):
            for out in use.node.outputs:
                yield from readers(out, owner)
        else:
            yield OUTSIDE
