"""A graph cut into blocks where one value is all that goes on, each trained towards the teacher's value there."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from graphpress.graph import edit
from graphpress.passes.recover.engine.parameters import trainable_of
from graphpress.passes.recover.engine.student import typed


@dataclass(frozen=True)
class GraphBlock:
    """What lies between two cuts.

    Attributes:
        name: Of the first and the last node with a parameter, for people.
        source: The value it goes on from; None: the inputs of the graph.
        outputs: The value at the cut behind it; the outputs of the graph in the last block.
        parameters: Those that are read here and in no other block.
        aside: What goes around the cut before it: values that follow from the inputs, or from shapes, alone.
    """

    name: str
    source: str | None
    outputs: tuple[str, ...]
    parameters: tuple[str, ...]
    aside: tuple[str, ...] = ()


_SHAPES = ("Shape", "Size")


@dataclass
class _Segment:
    nodes: list[ir.Node]
    end: ir.Value | None  # None: the end of the graph


@dataclass
class _Flow:
    """What follows from what.

    Attributes:
        reads: Parameters that a node reads, directly or through nodes that compute from constants alone.
        moving: Values that depend both on the inputs of the graph and on a parameter, by more than their shapes.
        still: Other values that depend on the inputs.
    """

    reads: dict[ir.Node, dict[str, None]] = field(default_factory=dict)
    moving: set[ir.Value] = field(default_factory=set)
    still: set[ir.Value] = field(default_factory=set)

    def of(self, nodes: Collection[ir.Node]) -> dict[str, None]:
        """The parameters that some nodes read."""
        return dict.fromkeys(name for node in nodes for name in self.reads.get(node, ()))


def blocks(model: ir.Model, teacher: ir.Model, parameters: Collection[str]) -> tuple[list[GraphBlock], dict[str, str]]:
    """The blocks of a graph, as small as they come, and the parameters left out, with the reason.

    Every block has a matrix; biases, norms and activations go with the one before them. A cut is a value through which
    all goes that depends both on the inputs and on a parameter: residual streams, layers of a chain. What depends on
    the inputs or on shapes alone (masks, positions) may go around it, and so may the inputs. The teacher must have a
    float value of that name.
    """
    model, teacher = typed(model), typed(teacher)
    matrices = trainable_of(model).matrices
    flow = _flow(model.graph, {*parameters, *matrices})
    known = {v.name: v.dtype for n in teacher.graph for v in n.outputs}
    segments = _merged(list(_segments(model.graph, flow, known)), flow, set(matrices))
    read = [dict.fromkeys(n for n in flow.of(segment.nodes) if n in parameters) for segment in segments]
    spread = {n: "it is read in several blocks" for i, r in enumerate(read) for n in r if any(n in o for o in read[:i])}
    result, source = [], None
    for segment, names in zip(segments, read, strict=True):
        ends = model.graph.outputs if segment.end is None else [segment.end]
        outputs = tuple(v.name or "" for v in ends)
        own = tuple(n for n in names if n not in spread)
        name = _name([n.name or "" for n in segment.nodes if flow.of([n])])
        result.append(GraphBlock(name, source, outputs, own, _aside(segment, flow)))
        source = outputs[0]
    return result, spread


def _flow(graph: ir.Graph, parameters: Collection[str]) -> _Flow:
    flow = _Flow()
    behind: dict[ir.Value, dict[str, None]] = {graph.initializers[name]: {name: None} for name in parameters}
    by_input = {v for v in graph.inputs if not v.is_initializer()}
    for node in graph:
        read = edit.reads(node)
        names = dict.fromkeys(name for v in read for name in behind.get(v, ()))
        if by_input.isdisjoint(read):
            behind |= dict.fromkeys(node.outputs, names)
            continue
        by_input.update(node.outputs)
        flow.reads[node] = names
        moves = names or not flow.moving.isdisjoint(read)
        (flow.moving if moves and node.op_type not in _SHAPES else flow.still).update(node.outputs)
    return flow


def _segments(graph: ir.Graph, flow: _Flow, known: dict[str | None, ir.DataType | None]) -> Iterator[_Segment]:
    """The nodes between neighbouring cuts."""
    left = {v: len({u.node for u in v.uses()}) + v.is_graph_output() for v in flow.moving}
    live: dict[ir.Value, None] = {}
    segment = _Segment([], None)
    for node in graph:
        segment.nodes.append(node)
        live |= dict.fromkeys(v for v in node.outputs if left.get(v))
        for value in dict.fromkeys(v for v in edit.reads(node) if v in live):
            left[value] -= 1
            if not left[value]:
                del live[value]
        end = next(iter(live), None)
        if len(live) == 1 and end is not None and known.get(end.name) is end.dtype is ir.DataType.FLOAT:
            yield _Segment(segment.nodes, end)
            segment = _Segment([], None)
    if segment.nodes:
        yield segment


def _merged(segments: list[_Segment], flow: _Flow, matrices: set[str]) -> list[_Segment]:
    """Segments without a matrix put to the one before them, the first ones to the one behind."""
    result: list[_Segment] = []
    for segment in segments:
        if result and any(matrices.isdisjoint(flow.of(s.nodes)) for s in (segment, result[-1])):
            result[-1] = _Segment(result[-1].nodes + segment.nodes, segment.end)
        else:
            result.append(segment)
    return result


def _aside(segment: _Segment, flow: _Flow) -> tuple[str, ...]:
    inside = set(segment.nodes)
    read = dict.fromkeys(v for n in segment.nodes for v in edit.reads(n))
    return tuple(v.name or "" for v in read if v in flow.still and v.producer() not in inside)


def _name(layers: list[str]) -> str:
    return layers[0] if len(set(layers)) == 1 else f"{layers[0]} .. {layers[-1]}" if layers else "the graph"
