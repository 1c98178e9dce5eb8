"""What is done to channels, and the constants that change along."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import onnx_ir as ir

from graphpress.passes.structure.channels.lanes import Lanes


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
    def summand(self) -> bool:
        """Whether it is no weight of a layer or an embedding."""
        return self.side == WRITER and self.node.op_type not in ("MatMul", "Gemm", "Conv", "Gather", "GatherND")

    @property
    def bias(self) -> bool:
        """Whether it is the bias of a layer that holds a weight as well."""
        return self.slot == 2 and self.node.op_type in ("Gemm", "Conv")
