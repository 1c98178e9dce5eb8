"""The one table of operators that only move data: what comes out went in, elsewhere, repeated, or chosen of it.

They commute with every monotone elementwise function, so with quantization. Which integer types they run on is a
matter of the target (``Target.wide_moves``).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit

OPSET = 13  # from here on Clip, MaxPool, Pad, ReduceMax take integers and every bound is an input


class Way(enum.Enum):
    """How what comes out lies to what goes in."""

    VIEW = "view"
    """Every element once, in the same row-major order."""
    REORDER = "reorder"
    """Every element once, in another order."""
    REPEAT = "repeat"
    """Every element some times."""
    SELECT = "select"
    """Elements chosen by place."""
    JOIN = "join"
    """The elements of all inputs."""
    RANK = "rank"
    """Elements chosen by size."""
    BOUND = "bound"
    """Elements, or scalars of the operator's own."""


TABLE: Mapping[str, Way] = {
    **dict.fromkeys(("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"), Way.VIEW),
    **dict.fromkeys(("DepthToSpace", "ReverseSequence", "SpaceToDepth", "Transpose"), Way.REORDER),
    **dict.fromkeys(("Expand", "Tile"), Way.REPEAT),
    **dict.fromkeys(("Gather", "GatherElements", "GatherND", "Resize", "Slice", "Split"), Way.SELECT),
    "Concat": Way.JOIN,
    **dict.fromkeys(("MaxPool", "ReduceMax", "ReduceMin"), Way.RANK),
    **dict.fromkeys(("Clip", "Pad", "Relu"), Way.BOUND),
}
CLAMPS = frozenset({"Clip", "Relu"})


@dataclass(frozen=True)
class Movement:
    """How an operator moves data.

    Attributes:
        way: Of the table.
        data: Input slots whose elements reach the outputs; the rest are shapes, indices, bounds.
        literals: Scalar float bounds and fill values by input slot: quantized when the operator runs on integers.
    """

    way: Way
    data: tuple[int, ...] = (0,)
    literals: Mapping[int, float] = field(default_factory=dict)


def movement(node: ir.Node | None) -> Movement | None:
    """How ``node`` moves data, or None where it does not commute with a monotone elementwise function."""
    way = TABLE.get(node.op_type) if node is not None and node.domain == "" else None
    if node is None or way is None:
        return None
    if (node.op_type == "MaxPool" and len(node.outputs) > 1) or (node.op_type == "Resize" and not _nearest(node)):
        return None
    literals = _literals(node) if way is Way.BOUND else {}
    data = tuple(range(len(node.inputs))) if way is Way.JOIN else (0,)
    return None if literals is None else Movement(way, data, literals)


def moves(node: ir.Node | None, *ways: Way) -> bool:
    """Whether a node moves data in one of these ways."""
    return node is not None and node.domain == "" and TABLE.get(node.op_type) in ways


def rearranges(node: ir.Node | None) -> bool:
    """Whether every element of input 0 comes out once: a weight behind it is the same weight in another form."""
    return moves(node, Way.VIEW, Way.REORDER)


def interval(node: ir.Node) -> tuple[float, float] | None:
    """What a Relu or a Clip with constant bounds clips to; None for other nodes."""
    if node.domain != "" or node.op_type not in CLAMPS:
        return None
    literals = _literals(node)
    if literals is None:
        return None
    lowest, highest = (edit.attribute(node, a, b) for a, b in (("min", -np.inf), ("max", np.inf)))  # before opset 11
    return literals.get(1, float(lowest)), literals.get(2, float(highest))


def _nearest(node: ir.Node) -> bool:
    crops = edit.attribute(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    return edit.attribute(node, "mode", "nearest") == "nearest" and not crops


def _literals(node: ir.Node) -> dict[int, float] | None:
    """Literal inputs by slot; None where one is computed at run time."""
    if node.op_type == "Relu":
        return {1: 0.0}
    if node.op_type == "Pad" and edit.attribute(node, "mode", "constant") != "constant":
        return {}
    found = {2: 0.0} if node.op_type == "Pad" else {}
    for slot in {"Clip": (1, 2), "Pad": (2,)}.get(node.op_type, ()):
        value = node.inputs[slot] if slot < len(node.inputs) else None
        if value is not None:
            array = edit.constant(value)
            if array is None or array.size != 1:
                return None
            found[slot] = float(array.item())
    return found
