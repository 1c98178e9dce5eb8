"""Operators that commute with quantization: they move elements, or choose among them by order.

Which integer types each runs on is what ONNX Runtime's CPU kernels have; a test probes the installed version.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit

OPSET = 13  # from here on Clip, MaxPool, Pad, ReduceMax take integers and every bound is an input

_WIDE = frozenset(
    [
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "Reshape",
        "ReverseSequence",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    ]
)
_NARROW = frozenset(
    ["Clip", "DepthToSpace", "MaxPool", "Pad", "ReduceMax", "ReduceMin", "Relu", "Resize", "SpaceToDepth"]
)


@dataclass(frozen=True)
class Movement:
    """How an operator moves data.

    Attributes:
        data: Input slots whose elements reach the outputs; the rest are shapes, indices, bounds.
        literals: Scalar float bounds and fill values by input slot: quantized when the operator runs on integers.
        bits: The widest integers that it runs on.
    """

    data: tuple[int, ...] = (0,)
    literals: dict[int, float] = field(default_factory=dict)
    bits: int = 8


def movement(node: ir.Node) -> Movement | None:
    """How ``node`` moves data, or None where it does not commute with a monotone elementwise function."""
    op = node.op_type
    if node.domain != "" or op not in _WIDE | _NARROW:
        return None
    if op in _WIDE:
        return Movement(tuple(range(len(node.inputs))) if op == "Concat" else (0,), bits=16)
    if op == "MaxPool" and len(node.outputs) > 1:
        return None
    if op == "Resize" and not _nearest(node):
        return None
    literals = _literals(node)
    return None if literals is None else Movement(literals=literals)


def bounds(node: ir.Node) -> tuple[float, float] | None:
    """The interval that a Relu or Clip clips to, if it is constant; None for other operators."""
    if node.domain != "" or node.op_type not in ("Relu", "Clip"):
        return None
    literals = _literals(node)
    return None if literals is None else (literals.get(1, -np.inf), literals.get(2, np.inf))


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
