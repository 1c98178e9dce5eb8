"""The values that a move changes together, found by following channels from a value, and the constants around them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphpress.contracts import Skip
from graphpress.graph import edit
from graphpress.passes.structure.channels.ask import (
    FACTOR,
    IN,
    OUT,
    READER,
    WRITER,
    Ask,
    Holder,
    Move,
    Port,
    Said,
    value_at,
)
from graphpress.passes.structure.channels.commuting import answer
from graphpress.passes.structure.channels.lanes import Lanes, covers
from graphpress.passes.structure.layers.norms import Norm

_TRIES = 16  # ways through products and cuts that are tried before the first refusal stands


@dataclass(eq=False)
class Carried:
    """A class of values tied by operators that let a move pass.

    Attributes:
        members: Each value and where the channels are in it.
        holders: The constants that write and read the channels.
        norms: Norm sites in it, by the way they were met: ``input`` (reads the channels) or ``output`` (makes them).
        blocks: What keeps the class as it is.
        passed: Operators that tie two values, in the order they were met.
        alike: For each channel the one that stands for all that must move as it does.
        extent: Channels that mix with one another.
    """

    members: dict[ir.Value, Lanes] = field(default_factory=dict)
    holders: list[Holder] = field(default_factory=list)
    norms: dict[Norm, set[str]] = field(default_factory=dict)
    blocks: list[Skip] = field(default_factory=list)
    passed: dict[ir.Node, None] = field(default_factory=dict)
    alike: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    extent: int = 1

    def side(self, side: str) -> list[Holder]:
        """Its writers or its readers, without the biases of layers."""
        return [h for h in self.holders if h.side == side and not h.bias]

    @property
    def writers(self) -> list[Holder]:
        return self.side(WRITER)

    @property
    def readers(self) -> list[Holder]:
        return self.side(READER)


def follow(
    seed: ir.Value,
    lanes: Lanes,
    move: Move = Move.ROTATE,
    *,
    extent: int = 1,
    norms: Mapping[ir.Node, Norm] | None = None,
    through: bool = False,
    alone: bool = False,
) -> Carried:
    """The class of a value.

    Args:
        seed: The value to begin with.
        lanes: Where the channels are in it.
        move: What is to be done to them.
        extent: Channels that mix with one another.
        norms: Each node that is part of a norm site, and the site.
        through: Norm sites tie their output to their input (a norm turns with what it reads) instead of ending it.
        alone: Whether nothing else may read a value on the way from the seed to what makes it.
    """
    picks: dict[ir.Node, int] = {}
    first: Carried | None = None
    for _ in range(_TRIES):
        walk = _Walk(move, extent, norms or {}, through, alone, picks)
        found = walk.run(seed, lanes)
        first = first or found
        if not found.blocks:
            return found
        open_ = [n for n, count in walk.choices.items() if picks.get(n, 0) + 1 < count]
        if not open_:
            break
        met = list(walk.choices)[: list(walk.choices).index(open_[-1])]
        picks = {n: picks.get(n, 0) for n in met} | {open_[-1]: picks.get(open_[-1], 0) + 1}
    assert first is not None
    return first


@dataclass(eq=False)
class _Walk:
    move: Move
    extent: int
    norms: Mapping[ir.Node, Norm]
    through: bool
    alone: bool
    picks: Mapping[ir.Node, int]
    choices: dict[ir.Node, int] = field(default_factory=dict)  # met so far, and how many ways each has
    found: Carried = field(default_factory=Carried)
    pending: deque[ir.Value] = field(default_factory=deque)
    ended: set[tuple[ir.Node, int, str]] = field(default_factory=set)

    def run(self, seed: ir.Value, lanes: Lanes) -> Carried:
        self.found.alike, self.found.extent = np.arange(int(lanes.max()) + 1), self.extent
        self.add(seed, lanes, None)
        while self.pending:
            value = self.pending.popleft()
            self.visit(value, self.found.members[value])
        for node in [n for n in self.found.passed if n.op_type == "Mul" and self.move in FACTOR]:
            if sum(v in self.found.members for v in node.inputs) > 1:
                self.block(node, "Mul multiplies two values of the same factor")
        return self.found

    def add(self, value: ir.Value, lanes: Lanes, by: ir.Node | None) -> None:
        known = self.found.members.get(value)
        if known is None:
            self.found.members[value] = lanes
            self.pending.append(value)
        elif not self.join(known, lanes):
            self.block(value.producer(), f"{value.name!r} holds the channels in two places at once")
        if by is not None:
            self.found.passed[by] = None

    def join(self, known: Lanes, new: Lanes) -> bool:
        """Channels at equal places are one from now on; runs only whole. What is new may be a part of what is known."""
        if known.shape == new.shape and np.array_equal(known, new):
            return True
        a, b = np.broadcast_arrays(known, new)
        a, b = a[b >= 0], b[b >= 0]
        if (a < 0).any() or ((a - b) % self.extent).any():
            return False
        alike = self.found.alike
        for x, y in set(zip(a.tolist(), b.tolist(), strict=True)):
            x, y = alike[x], alike[y]
            alike[alike == max(x, y)] = min(x, y)
        return True

    def visit(self, value: ir.Value, lanes: Lanes) -> None:
        producer = value.producer()
        if producer is None:
            self.block(value, "it is an input of its graph" if value.is_graph_input() else "it is a constant")
        else:
            self.node(producer, (OUT, producer.outputs.index(value)), value, lanes)
        if value.is_graph_output():
            other = f"{value.name!r} is an output of the graph, or others read it too"
            self.block(value, other if self.alone else f"{value.name!r} is an output of its graph")
        for user, slot in value.uses():
            if user.graph is not value.graph:
                self.block(user, "a body of If, Loop or Scan reads it")
            else:
                self.node(user, (IN, slot), value, lanes)

    def node(self, node: ir.Node, port: Port, value: ir.Value, lanes: Lanes) -> None:
        if (norm := self.norms.get(node)) is not None:
            self.norm(norm, port, value, lanes)
            return
        said = answer(Ask(node, port, lanes, self.move, self.extent))
        if isinstance(said, Said) and said.either:
            self.choices.setdefault(node, len(said.either))
            said = said.either[self.picks.get(node, 0)]
        if isinstance(said, str):
            self.block(node, said)
            return
        ties = {p: v for p, v in said.ties.items() if p != port and (v >= 0).any()}
        others = [v for p in ties if (v := value_at(node, p)) is not None and not edit.is_constant(v)]
        if self.alone and port[0] == IN and any(v not in self.found.members for v in others):
            self.block(value, f"{value.name!r} is an output of the graph, or others read it too")
            return
        for holder in said.held:
            self.end(holder)
        for p, where in ties.items():
            if (other := value_at(node, p)) is not None and p[0] == IN and edit.is_constant(other):
                self.end(Holder(node, p[1], where))
            elif other is not None:
                self.add(other, where, node)

    def end(self, holder: Holder) -> None:
        key = (holder.node, holder.slot, holder.side)
        if key not in self.ended:
            self.ended.add(key)
            self.found.holders.append(holder)

    def norm(self, norm: Norm, port: Port, value: ir.Value, lanes: Lanes) -> None:
        if not covers(lanes, value, -1) or lanes.size != self.extent:
            self.block(norm.node, "it normalizes over other axes than these channels")
            return
        self.found.norms.setdefault(norm, set()).add("input" if port[0] == IN else "output")
        if self.through:
            self.add(norm.output if port[0] == IN else norm.input, lanes, norm.node)

    def block(self, where: ir.Node | ir.Value | None, why: str) -> None:
        skip = Skip((where.name if where is not None else None) or "?", why)
        if skip not in self.found.blocks:
            self.found.blocks.append(skip)


def by_node(norms: Iterable[Norm]) -> dict[ir.Node, Norm]:
    """Each node that is part of a norm site, and the site."""
    return {node: norm for norm in norms for node in norm.nodes}
