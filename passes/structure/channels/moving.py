"""Operators that move, copy, cut and join data: their rule is the operator itself, run on the numbers of channels.

Axes of unknown size, along which lanes never vary, get a small one; for what is computed stand two values that must
give the same.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.graph.evaluate import evaluate
from graphpress.passes.structure.channels.arithmetic import Outs, share
from graphpress.passes.structure.channels.lanes import Lanes, along, dims, reshape, reshapes, size, varying
from graphpress.passes.structure.channels.moves import ORDER, Move
from graphpress.passes.structure.channels.survey import Survey
from graphpress.passes.structure.layers.linear import FLOATS

_OPEN, _MOST, _END, _NEWEST, _LARGE = 7, 1 << 12, np.iinfo(np.int64).max, 23, 1 << 22
_STANDS = {  # for computed operands: the first or the last of an axis, all of it, each of it
    ("Gather", 1): (0, -1), ("GatherND", 1): (0, -1), ("Slice", 1): (0, -1), ("Slice", 2): (_END, _END),
    ("Slice", 4): (1, 1),
}  # fmt: skip


def reshaped(found: Survey, node: ir.Node) -> Outs:
    """Reshape, Flatten, Squeeze, Unsqueeze."""
    lanes, before, after = _read(found, node), dims(node.inputs[0]), dims(node.outputs[0])
    if lanes is None:
        return []
    if before is None or after is None:
        return "the shapes around its Reshape are not known"
    made = reshape(lanes, before, after)
    if made is None and found.move is Move.ROTATE:  # runs that fall together along an open axis turn alike
        for choice in reshapes(lanes, before, after):
            made = choice
            for axis in [a for a in varying(choice) if not isinstance(after[a], int)]:
                found.join(made, made.take([0], axis))
                made = made.take([0], axis)
    why = "a Reshape breaks up the channels: it mixes them with an axis of unknown size"
    return why if made is None else [made]


def rearranged(found: Survey, node: ir.Node) -> Outs:
    """Transpose, Expand, Split, Slice, Gather, GatherND, Pad. What Pad puts beside channels is bound to nothing."""
    op, lanes = node.op_type, _read(found, node)
    for slot, other in found.numbered(node).items():
        if slot:
            found.hold(other, node, f"{op} reads the values as indices")
    if op == "Pad" and found.move not in ORDER and edit.attribute(node, "mode", "constant") == "constant":
        given = len(node.inputs) > 2 and node.inputs[2] is not None
        filler = edit.constant(node.inputs[2]) if given else edit.attribute(node, "value", 0.0)
        if filler is None or np.any(filler):
            return "Pad puts one number other than 0 beside all channels"
    if lanes is None:
        return []
    try:
        made = _made(node, np.broadcast_to(lanes, _sizes(node, lanes)))
        if found.move is Move.SLICE and op != "Transpose":
            _check_counts(node, lanes, made)
    except ValueError as e:  # of the operator itself too
        return f"{op} {e}"
    for out in made:
        if out.size == 1 and (out >= 0).all():
            found.hold(out, node, f"{op} picks single channels")
        out[out < 0] = found.fresh([int((out < 0).sum())])
    return made


def _check_counts(node: ir.Node, lanes: Lanes, made: list[Lanes]) -> None:
    """Without a channel an operator is to give the same without that channel."""
    (axis,), first = varying(lanes), lanes.reshape(-1)[0]
    fewer = np.broadcast_to(lanes, _sizes(node, lanes)).compress(lanes.reshape(-1) != first, axis)
    same = (np.array_equal(a[a != first], b.reshape(-1)) for a, b in zip(made, _made(node, fewer), strict=True))
    if any((out < 0).any() for out in made) or not all(same):
        raise ValueError("counts the channels")


def joined(found: Survey, node: ir.Node) -> Outs:
    """Concat: along another axis than the channels' they are the same; along theirs they stand beside one another."""
    numbered = found.numbered(node)
    rank = next(iter(numbered.values())).ndim
    axis = int(edit.attribute(node, "axis", 0)) % rank
    if all(lanes.shape[axis] == 1 for lanes in numbered.values()):
        return share(found, node)
    counts = [size(v, axis) for v in node.inputs]
    if found.move is Move.ROTATE or None in counts:
        return "Concat puts other channels beside these"
    for slot, value in enumerate(node.inputs):
        if value is not None and slot not in numbered:
            numbered[slot] = along(found.fresh([counts[slot] or 1]), axis, rank)
            if edit.is_constant(value):
                found.keep(node, slot, numbered[slot])
            else:
                found.hold_by(numbered[slot], value)
    parts = [numbered[slot] for slot in range(len(counts))]
    across = np.broadcast_shapes(*(lanes.take([0], axis).shape for lanes in parts))
    wide = [(*across[:axis], count or 1, *across[axis + 1 :]) for count in counts]
    return [np.concatenate([np.broadcast_to(p, w) for p, w in zip(parts, wide, strict=True)], axis)]


def _read(found: Survey, node: ir.Node) -> Lanes | None:
    """Lanes of input 0; a constant makes channels of its elements, along its last axis where others are picked."""
    value = node.inputs[0]
    tensor = edit.constant_tensor(value)
    if tensor is None or value is None or not node.outputs[0].uses():
        return found.lanes.get(value) if value is not None else None
    shape = tuple(tensor.shape.numpy())
    if not all(v is None or edit.is_constant(v) for v in node.inputs):
        shape = (1,) * (len(shape) - 1) + shape[-1:]
    if tensor.dtype not in FLOATS or not 1 < np.prod(shape) <= _LARGE:
        return None
    lanes = found.fresh(shape)
    found.keep(node, 0, lanes)
    return lanes


def _made(node: ir.Node, data: Lanes) -> list[Lanes]:
    """The outputs of the operator on channels in place of its data; -1 is what Pad puts beside."""
    rest = [(i, None if node.op_type == "Pad" and i == 2 else v) for i, v in enumerate(node.inputs) if i]
    version = node.graph.opset_imports.get("", _NEWEST) if isinstance(node.graph, ir.Graph) else _NEWEST
    choices = []
    for choice in range(2 - all(v is None or edit.is_constant(v) for _, v in rest)):
        outs = evaluate(node, [data + 1, *(_operand(node, i, v, choice) for i, v in rest)], version)
        choices.append([_filled(out) - 1 for out in outs])
    if not all(map(np.array_equal, choices[0], choices[-1])):
        raise ValueError("picks single channels at a place that is computed")
    if choices[0][0].ndim != len(dims(node.outputs[0]) or choices[0][0].shape):
        raise ValueError("gives another rank than the graph says")
    return choices[0]


def _operand(node: ir.Node, slot: int, value: ir.Value | None, choice: int) -> np.ndarray | None:
    """What stands for an operand that is not data."""
    if value is None or edit.is_constant(value):
        return edit.constant(value)
    if node.op_type == "Expand":
        return np.array([d if isinstance(d, int) else 1 for d in dims(node.outputs[0]) or ()])
    shape, stands = dims(value), _STANDS.get((node.op_type, slot))
    if shape is None or stands is None:
        raise ValueError("moves them to a place that is computed")
    return np.full([d if isinstance(d, int) else _OPEN for d in shape], stands[choice])


def _sizes(node: ir.Node, lanes: Lanes) -> list[int]:
    """Of the data; an axis of unknown size gets one that holds all constant indices, so do the rows of a table."""
    constants = [c for v in node.inputs[1:] if (c := edit.constant(v)) is not None and c.dtype.kind == "i"]
    some = 1 + max([_OPEN, *(int(n) for c in constants for n in np.abs(c.reshape(-1)) if n < _MOST)])
    shape = [d if isinstance(d, int) else some for d in dims(node.inputs[0]) or ()]
    if len(shape) != lanes.ndim:
        raise ValueError("reads a value of unknown shape")
    rows = node.op_type in ("Gather", "GatherND")
    return [min(d, some) if rows and n == 1 else d for d, n in zip(shape, lanes.shape, strict=True)]


def _filled(marked: np.ndarray) -> np.ndarray:
    """One element along every axis on which all are the same, but for those that are nothing."""
    for axis in varying(marked):
        top = marked.max(axis, keepdims=True)
        marked = top if ((marked == top) | (marked == 0)).all() else marked
    return marked
