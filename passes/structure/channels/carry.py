"""The values that must change basis together, found by following channels from a value in both directions."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import onnx_ir as ir

from graphpress.contracts import Skip
from graphpress.graph import edit
from graphpress.passes.structure.channels import carriers
from graphpress.passes.structure.channels.carriers import IN, OUT, End, Port
from graphpress.passes.structure.channels.place import Place, size
from graphpress.passes.structure.layers.norms import Norm

if TYPE_CHECKING:
    import networkx as nx

Side = Literal["writer", "reader"]


@dataclass(frozen=True, eq=False)
class Weight:
    """A constant that makes the channels (``writer``), or that a layer reads them with (``reader``).

    Attributes:
        node: The node that holds it: a layer, an embedding, or a sum with a constant.
        slot: The input that holds it.
        axis: Its axis, as stored, that runs over the channels. Negative: it may be broadcast over them; the axis is
            then counted from the end, as in the value that it is added to.
        place: Which of them, and in runs of what size.
        side: Which of the two.
        bias: The input of ``node`` that holds a bias of the same channels, or None.
    """

    node: ir.Node
    slot: int
    axis: int
    place: Place
    side: Side
    bias: int | None = None

    @property
    def name(self) -> str:
        return self.node.name or "?"

    @property
    def constant(self) -> bool:
        """Whether it is a summand rather than the weight of a layer or an embedding."""
        return self.side == "writer" and self.node.op_type not in ("MatMul", "Gemm", "Conv", "Gather")


@dataclass(eq=False)
class Carried:
    """A class of values tied by operators that let a change of basis pass.

    Attributes:
        members: Each value and where the channels are in it.
        ties: The same as a graph: an edge is an operator (attribute ``node``) that ties two values.
        weights: The constants that write and read the channels.
        norms: Norm sites in it, by the way they were met: ``input`` (reads the channels) or ``output`` (makes them).
        blocks: What keeps the class from changing basis.
        shifts: Operators through which a constant shift of the channels would not pass unchanged.
    """

    members: dict[ir.Value, Place]
    ties: nx.Graph
    weights: list[Weight] = field(default_factory=list)
    norms: dict[Norm, set[str]] = field(default_factory=dict)
    blocks: list[Skip] = field(default_factory=list)
    shifts: list[ir.Node] = field(default_factory=list)

    def side(self, side: Side) -> list[Weight]:
        """Its writers or its readers."""
        return [w for w in self.weights if w.side == side]


_NOT_SHIFTED = ("Mul", "Div", "Neg", "ReduceSum", "Sub", "Sum", "Add", "Where", "Concat")


def follow(seed: ir.Value, place: Place, norms: Mapping[ir.Node, Norm], *, through: bool = False) -> Carried:
    """The class of a value.

    Args:
        seed: The value to begin with.
        place: Where the channels are in it.
        norms: Each node that is part of a norm site, and the site.
        through: Norm sites tie their output to their input (a norm turns with what it reads) instead of ending it.
    """
    import networkx as nx

    walk = _Walk(Carried({}, nx.Graph()), norms, through)
    walk.add(seed, place, None)
    while walk.pending:
        value = walk.pending.popleft()
        walk.visit(value, walk.found.members[value])
    return walk.found


@dataclass
class _Walk:
    found: Carried
    norms: Mapping[ir.Node, Norm]
    through: bool
    pending: deque[ir.Value] = field(default_factory=deque)
    ended: set[tuple[ir.Node, int]] = field(default_factory=set)

    def add(self, value: ir.Value, place: Place, by: tuple[ir.Value, ir.Node] | None) -> None:
        known = self.found.members.get(value)
        if known is None:
            self.found.members[value] = place
            self.found.ties.add_node(value)
            self.pending.append(value)
        elif known != place:
            self.block(value.producer(), f"{value.name!r} holds the channels in two places at once")
        if by is not None and by[0] is not value:
            self.found.ties.add_edge(by[0], value, node=by[1])

    def visit(self, value: ir.Value, place: Place) -> None:
        producer = value.producer()
        if producer is None:
            self.block(value, "it is an input of its graph" if value.is_graph_input() else "it is a constant")
        else:
            self.node(producer, (OUT, producer.outputs.index(value)), value, place)
        if value.is_graph_output():
            self.block(value, f"{value.name!r} is an output of its graph")
        for user, slot in value.uses():
            if user.graph is not value.graph:
                self.block(user, "a body of If, Loop or Scan reads it")
            else:
                self.node(user, (IN, slot), value, place)

    def node(self, node: ir.Node, port: Port, value: ir.Value, place: Place) -> None:
        if (norm := self.norms.get(node)) is not None:
            self.norm(norm, port, value, place)
            return
        said = carriers.rule(node)(node, port, place)
        if isinstance(said, str):
            self.block(node, said)
        elif isinstance(said, End):
            self.end(node, said, place)
        else:
            self.tie(node, said, value)

    def tie(self, node: ir.Node, ties: Mapping[Port, Place], by: ir.Value) -> None:
        if node.op_type in _NOT_SHIFTED and node not in self.found.shifts:
            self.found.shifts.append(node)
        for port, place in ties.items():
            value = carriers.value_at(node, port)
            if value is None:
                continue
            if port[0] == IN and edit.is_constant(value):
                self.end(node, End("writer", port[1], place.axis), place)
            else:
                self.add(value, place, (by, node))

    def end(self, node: ir.Node, end: End, place: Place) -> None:
        if (node, end.slot * 2 + (end.side == "reader")) not in self.ended:
            self.ended.add((node, end.slot * 2 + (end.side == "reader")))
            self.found.weights.append(Weight(node, end.slot, end.axis, place, end.side, end.bias))

    def norm(self, norm: Norm, port: Port, value: ir.Value, place: Place) -> None:
        width = size(value, -1)
        if place != Place(len(value.shape or ()) - 1, width or 0, 0, width or 0):
            self.block(norm.node, "it normalizes over other axes than these channels")
            return
        self.found.norms.setdefault(norm, set()).add("input" if port[0] == IN else "output")
        if self.through:
            self.add(norm.output if port[0] == IN else norm.input, place, (value, norm.node))

    def block(self, where: ir.Node | ir.Value | None, why: str) -> None:
        skip = Skip((where.name if where is not None else None) or "?", why)
        if skip not in self.found.blocks:
            self.found.blocks.append(skip)


def by_node(norms: Iterable[Norm]) -> dict[ir.Node, Norm]:
    """Each node that is part of a norm site, and the site."""
    return {node: norm for norm in norms for node in norm.nodes}
