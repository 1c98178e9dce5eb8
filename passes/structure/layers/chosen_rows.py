"""Values whose shape the data decide: tokens that a router sends to an expert, boxes that are left over.

A shape that follows from the shapes of the inputs, known or not, is none of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import onnx_ir as ir

from graphpress.graph import edit
from graphpress.passes.structure.channels.lanes import dims

_CHOOSE = ("Compress", "NonMaxSuppression", "NonZero", "SequenceAt", "StringSplit", "Unique")
# Inputs whose values are sizes of the output.
_SIZES = {
    "CenterCropPad": (1,), "ConstantOfShape": (0,), "Expand": (1,), "OneHot": (1,), "Pad": (1,), "Range": (0, 1, 2),
    "Reshape": (1,), "Resize": (2, 3), "Slice": (1, 2, 4), "Split": (1,), "Tile": (1,), "TopK": (1,),
    "Loop": (0, 1), "If": (0,),
}  # fmt: skip
_SHAPED_AS_FIRST = ("CastLike", "Scatter", "ScatterElements", "ScatterND")


def chosen_rows(graph: ir.Graph) -> dict[ir.Value, str]:
    """The values of a graph whose shape depends on what the inputs hold, each with the operator that makes it so."""
    outer = {symbol for value in graph.inputs for symbol in _symbols(dims(value) or ())}
    held: set[ir.Value] = {v for v in graph.inputs if not edit.is_constant(v)}  # what depends on what inputs hold
    chosen: dict[ir.Value, str] = {}
    for node in graph:
        read = edit.reads(node)
        why = _why(node, read, held, chosen)
        if node.op_type in ("Shape", "Size"):
            told = any(v in chosen for v in read)
        else:
            told = bool(why) or any(v in held for v in read)
        held.update(node.outputs if told else ())
        chosen |= {v: why for v in node.outputs if why and not _follows(v, outer)}
    return chosen


def _why(node: ir.Node, read: Sequence[ir.Value], held: set[ir.Value], chosen: dict[ir.Value, str]) -> str:
    """The operator by which the shape of what a node gives depends on what inputs hold; "" where it does not."""
    if node.op_type in ("Shape", "Size"):
        return ""
    by_values = any(i < len(node.inputs) and node.inputs[i] in held for i in _SIZES.get(node.op_type, ()))
    if by_values or (node.op_type in _CHOOSE and any(v in held for v in read)):
        return node.op_type
    shaping = node.inputs[:1] if node.op_type in _SHAPED_AS_FIRST else read
    return next((chosen[v] for v in shaping if v in chosen), "")


def _follows(value: ir.Value, outer: set[str]) -> bool:
    """Whether all dimensions are known to be numbers or made of those of the inputs."""
    shape = dims(value)
    return shape is not None and None not in shape and _symbols(shape) <= outer


def _symbols(shape: Iterable[int | str | None]) -> set[str]:
    return {name for d in shape if isinstance(d, str) for name in re.findall(r"[A-Za-z_]\w*", d)}
