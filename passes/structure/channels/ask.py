"""The question put to the rule of an operator, and what it may answer."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from graphpress.passes.structure.channels.lanes import Dim, Lanes, dims, varying

IN, OUT = "in", "out"
Port: TypeAlias = tuple[str, int]


class Move(enum.Enum):
    """What is done to channels."""

    PERMUTE = "permute"
    SLICE = "slice"  # some are kept
    SCALE = "scale"  # each times a positive factor of its own
    SIGN = "scale by either sign"
    ROTATE = "rotate"  # runs of them times an orthogonal matrix


ORDER = (Move.PERMUTE, Move.SLICE)
FACTOR = (Move.SCALE, Move.SIGN)
WRITER, READER = "writer", "reader"


@dataclass(frozen=True, eq=False)
class Holder:
    """A constant whose elements belong to channels.

    Attributes:
        node, slot: The input that holds it: a layer, an embedding, a norm, or a sum or product with a constant.
        lanes: Of its axes, counted from the end: it is broadcast along those that it lacks.
        side: Whether it makes the channels (``writer``), or a layer sums over them with it (``reader``).
    """

    node: ir.Node
    slot: int
    lanes: Lanes
    side: str = WRITER

    @property
    def name(self) -> str:
        return self.node.name or "?"

    @property
    def axis(self) -> int:
        """Its axis that runs over the channels, from the end."""
        return (varying(self.lanes) or [self.lanes.ndim - 1])[0] - self.lanes.ndim

    @property
    def summand(self) -> bool:
        """Whether it is no weight of a layer or an embedding."""
        return self.side == WRITER and self.node.op_type not in ("MatMul", "Gemm", "Conv", "Gather", "GatherND")

    @property
    def bias(self) -> bool:
        """Whether it is the bias of a layer that holds a weight as well."""
        return self.slot == 2 and self.node.op_type in ("Gemm", "Conv")


@dataclass(frozen=True, eq=False)
class Said:
    """Where the same channels are around a node.

    Attributes:
        ties: Lanes at the other ports (and at the one asked for).
        held: Constants of the node that change along.
        apart: (lanes, axes): channels of different indices on these axes are told apart.
        either: Any one of these will do (the factor of a product).
        free: -1 in the output are elements that are all alike.
    """

    ties: dict[Port, Lanes]
    held: tuple[Holder, ...] = ()
    apart: tuple[tuple[Lanes, list[int]], ...] = ()
    either: tuple[Said, ...] = ()
    free: bool = False


Answer: TypeAlias = Said | str


@dataclass(frozen=True, eq=False)
class Ask:
    """``lanes`` at a port of a node are to undergo a move; where are they elsewhere, or why not?

    Attributes:
        extent: Channels that mix with one another (rotations).
    """

    node: ir.Node
    port: Port
    lanes: Lanes
    move: Move
    extent: int = 1

    @property
    def at_output(self) -> bool:
        return self.port[0] == OUT

    @property
    def axes(self) -> list[int]:
        """Those on which the channels stand."""
        return varying(self.lanes)

    def input(self, slot: int) -> ir.Value | None:
        """An input, or None where there is none."""
        return self.node.inputs[slot] if slot < len(self.node.inputs) else None

    def shape(self, slot: int | None = 0) -> list[Dim] | None:
        """Dimensions of an input, or (None) of the first output."""
        return dims(self.node.outputs[0] if slot is None else self.input(slot))

    def through(self, other: Lanes, held: Iterable[Holder] = (), **more: object) -> Said:
        """Input 0 and output 0 hold the same channels: ``other`` are the lanes at the one that was not asked for."""
        ends = {(IN, 0): other, (OUT, 0): self.lanes} if self.at_output else {(IN, 0): self.lanes, (OUT, 0): other}
        return Said(ends, tuple(held), **more)  # type: ignore[arg-type]


Locate: TypeAlias = Callable[[Ask], Answer]


@dataclass(frozen=True)
class Rule:
    """One line of the table.

    Attributes:
        locate: Where the channels are at the other ports; it may refuse what depends on operands.
        moves: Those that the operator lets pass, or takes up.
        why: The reason for the others.
    """

    locate: Locate
    moves: frozenset[Move]
    why: str = "acts on the channels one by one, or mixes them"


def value_at(node: ir.Node, port: Port) -> ir.Value | None:
    """The value at a port."""
    return (node.inputs if port[0] == IN else node.outputs)[port[1]]
