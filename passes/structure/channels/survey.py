"""Which channels of a graph may change places, go, or change together: what a walk over its operators wrote down.

Every channel that an operator with constants makes has a number. What reads, adds or moves channels hands the numbers
on, and joins those that can only change alike. So the channels of siblings (all readers of a value) and coparents (all
producers joined by Add) become one. Every place where channels stand is an *event*.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.passes.structure.channels.lanes import Lanes, components, operand, varying
from graphpress.passes.structure.channels.moves import ORDER, READER, Holder, Move
from graphpress.passes.structure.layers.norms import Norm


@dataclass(frozen=True, eq=False)
class Event:
    """A place where channels stand.

    Attributes:
        lanes: Those channels.
        apart: Axes along which they are told apart. All: they stay as they are.
        where: What tells them apart.
        why: The reason.
    """

    lanes: Lanes
    apart: tuple[int, ...] = ()
    where: ir.Node | ir.Value | None = None
    why: str = ""

    @property
    def free(self) -> list[int]:
        """Axes along which channels may change places or mix."""
        return [a for a in range(self.lanes.ndim) if a not in self.apart]


class Product(NamedTuple):
    """A Mul or Div: a factor of its ``lanes`` is a factor of one operand, ``ways`` by input in the order to try."""

    node: ir.Node
    lanes: Lanes
    ways: dict[int, Lanes]


@dataclass
class Survey:
    """Channels of a graph.

    Attributes:
        move: What is to be done to them.
        lanes: Of each value: where which channels are.
        holders: Constants that change along.
        events: Where channels stand, and what keeps them there.
        products: Choices of factors, for ``SCALE`` and ``SIGN``.
        roots: For every channel the one that stands for all joined with it; once the walk is over.
        sites: Norm sites, which of their ends (``input``, ``output``), and the channels there.
        refused: Operators that let nothing pass, and why.
    """

    move: Move = Move.PERMUTE
    lanes: dict[ir.Value, Lanes] = field(default_factory=dict)
    holders: dict[tuple[ir.Node, int, str], Holder] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    sites: list[tuple[Norm, str, Lanes]] = field(default_factory=list)
    refused: dict[ir.Node, str] = field(default_factory=dict)
    roots: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    _joins: list[tuple[Lanes, Lanes]] = field(default_factory=list)
    _count: int = 0

    def fresh(self, shape: Sequence[int]) -> Lanes:
        """New channels of this shape."""
        self._count += math.prod(shape)
        return np.arange(self._count - math.prod(shape), self._count).reshape(shape)

    def join(self, a: Lanes, b: Lanes) -> None:
        """Channels at equal places (numpy's broadcasting) are one from now on."""
        if not np.array_equal(a, b):
            self._joins.append((a, b))

    def apart(self, lanes: Lanes, axes: Iterable[int], where: ir.Node | ir.Value | None = None, why: str = "") -> None:
        """Channels change places, or mix, only within equal indices of these axes."""
        axes = tuple(axes)
        if why or any(lanes.shape[a] > 1 for a in axes):
            self.events.append(Event(lanes, axes, where, why))

    def hold(self, lanes: Lanes, where: ir.Node | ir.Value | None, why: str) -> None:
        """Channels that must stay as they are."""
        self.apart(lanes, range(lanes.ndim), where, why)

    def hold_by(self, lanes: Lanes, value: ir.Value) -> None:
        """Channels that stay since a value without any stands beside them."""
        self.hold(lanes, *self.missing(value))

    def put(self, value: ir.Value, lanes: Lanes) -> None:
        """A value holds these channels; those that stand in it several times are copies with numbers of their own."""
        if len(np.unique(lanes)) < lanes.size:
            copies = self.fresh(lanes.shape)
            self.join(copies, lanes)
            lanes = copies
        self.lanes[value] = lanes

    def stand(self, lanes: Lanes) -> None:
        """Channels stand somewhere, and all of them may change places there."""
        self.events.append(Event(lanes))

    def keep(self, node: ir.Node, slot: int, lanes: Lanes, side: str = Holder.side) -> None:
        """A constant changes along; one number for several channels tells orders apart, and is written out for others.

        Args:
            node, slot: Where it is read.
            lanes: Of what it is broadcast to.
            side: ``writer`` or ``reader``.
        """
        value = node.inputs[slot]
        assert value is not None
        own, lacks = operand(lanes, value)
        if lacks and self.move in ORDER:
            self.apart(lanes, [a for a in varying(lanes) if a not in lacks])
        elif (node, slot, side) not in self.holders:
            first = min(lanes.ndim - len(value.shape or ()), *varying(lanes)) if lacks else 0
            self.holders[node, slot, side] = Holder(node, slot, lanes[(0,) * first] if lacks else own, side)
            self.stand(lanes)

    def numbered(self, node: ir.Node) -> dict[int, Lanes]:
        """Lanes of the inputs that have channels."""
        return {i: self.lanes[v] for i, v in enumerate(node.inputs) if v is not None and v in self.lanes}

    def missing(self, value: ir.Value) -> tuple[ir.Node | ir.Value, str]:
        """(what, why) makes no channels of a value that has none."""
        while (node := value.producer()) is not None:
            if node in self.refused:
                return node, self.refused[node]
            others = [v for v in node.inputs if v is not None and v not in self.lanes and not edit.is_constant(v)]
            if not others:
                return node, "makes no channels that are known"
            value = others[0]
        return value, "it is an input of its graph" if value.is_graph_input() else "it is a constant"

    @property
    def readers(self) -> list[Holder]:
        """The weights of layers that sum over channels."""
        return [h for h in self.holders.values() if h.side == READER]

    def settle(self) -> None:
        """Choose factors of products, the last first: a constant, or else what nothing holds; then find the roots."""
        roots, held = components(self._count, self._joins), np.zeros(self._count, bool)
        for event in self.events:
            if event.why and not event.free:
                held[roots[event.lanes]] = True
        for node, lanes, ways in reversed(self.products):
            fixed = [i for i in ways if edit.is_constant(node.inputs[i])]
            chosen = [*fixed, *(i for i, way in ways.items() if not held[roots[way]].any()), *ways][0]
            for slot, way in ways.items():
                if slot == chosen and fixed:
                    self.keep(node, slot, lanes)
                elif slot == chosen:
                    self.join(lanes, way)
                elif slot not in fixed:
                    self.hold(way, node, f"{node.op_type} multiplies two values of the same factor")
        self.roots = components(self._count, self._joins)

    def groups(self) -> list[np.ndarray]:
        """Sets of two or more channels (roots) that may change places, each in rising order.

        Two channels that stand in the same events, equally often, may: then every constant that is indexed by them
        changes its order along, and nothing else does.
        """
        rng = np.random.default_rng(0)
        seen = np.zeros(len(self.roots), np.uint64)  # equal where all events are
        for event in self.events:
            sizes = [n if a in event.apart else 1 for a, n in enumerate(event.lanes.shape)]
            keys = rng.integers(0, 2**64, size=sizes, dtype=np.uint64)
            at, spread = np.broadcast_arrays(self.roots[event.lanes], keys)
            with np.errstate(over="ignore"):
                np.add.at(seen, at.ravel(), spread.ravel())
        heads = np.unique(self.roots)
        _, inverse, counts = np.unique(seen[heads], return_inverse=True, return_counts=True)
        found = [heads[inverse == k] for k in np.flatnonzero(counts > 1)]
        return sorted(found, key=lambda g: int(g[0]))

    def why_stuck(self, lanes: Lanes) -> str:
        """What holds these channels in place."""
        wanted = np.unique(self.roots[lanes.ravel()])
        for event in self.events:
            if event.why and not event.free and np.isin(self.roots[event.lanes.ravel()], wanted).any():
                who = f"{event.where.op_type} {event.where.name!r}: " if isinstance(event.where, ir.Node) else ""
                return who + event.why
        return "no two of its channels come and go the same way"
