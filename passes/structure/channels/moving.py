"""Operators that move, copy, cut and join data: their rule is the operator itself, run on the numbers of channels.

Forwards it runs on lanes. Backwards it runs on the places of its inputs, which tells where each element of the output
comes from. Axes of unknown size, along which lanes never vary, get a small one; for computed indices stand two choices
that must give the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.graph.evaluate import evaluate
from graphpress.passes.structure.channels.ask import IN, ORDER, OUT, Answer, Ask, Move, Port, Said
from graphpress.passes.structure.channels.lanes import Lanes, dims, on_one_axis, reshape, slim, told_apart, varying

_CUT = "a part of the channels that mix is cut off"
_OPEN, _MOST, _END, _NEWEST = 7, 1 << 12, np.iinfo(np.int64).max, 23
# What stands for a computed operand: the first or the last of an axis, all of it, each of it.
_STANDS = {("Gather", 1): (0, -1), ("GatherND", 1): (0, -1), ("Slice", 1): (0, -1), ("Slice", 2): (_END, _END),
           ("Slice", 4): (1, 1)}  # fmt: skip
_NOTHING, _HOLE, _FIRST = 0, 1, 2  # in what an operator runs on: no part of any input, -1 of the lanes, channel 0


def reshaped(ask: Ask) -> Answer:
    """Reshape, Flatten, Squeeze, Unsqueeze."""
    before, after = ask.shape(), ask.shape(None)
    if before is None or after is None:
        return "the shapes around its Reshape are not known"
    before, after = (after, before) if ask.at_output else (before, after)
    made = reshape(ask.lanes, before, after)
    if made is None and ask.extent > 1:  # runs that fall together turn alike
        made = reshape(np.where(ask.lanes < 0, -1, ask.lanes % ask.extent), before, after)
    if made is None:
        return "a Reshape breaks up the channels: it mixes them with an axis of unknown size"
    return ask.through(made) if on_one_axis(made, ask.extent) else "a Reshape breaks up the channels that mix"


def moved(ask: Ask) -> Answer:
    """Transpose, Expand, Concat, Split, Slice, Gather, GatherND, Pad."""
    op = ask.node.op_type
    if ask.port[0] == IN and ask.port[1] and op != "Concat":
        return f"{op} reads the values as indices"
    if op == "Pad" and (why := _padding(ask)):
        return why
    try:
        if ask.at_output:
            return _backwards(ask)
        said = _forwards(ask, _widened(ask))
        return said if ask.move is not Move.SLICE or isinstance(said, str) else _counted(ask, said)
    except ValueError as e:
        return f"{op} moves the channels in a way that is not known: {e}"


def _padding(ask: Ask) -> str:
    """Zeros, which stay zeros under factors and turns, or anything beside channels that change places."""
    filler = edit.attribute(ask.node, "value", 0.0) if ask.input(2) is None else edit.constant(ask.input(2))
    zeros = edit.attribute(ask.node, "mode", "constant") != "constant" or (filler is not None and not np.any(filler))
    return "" if zeros or ask.move in ORDER else "Pad puts one number other than 0 beside all channels"


def _forwards(ask: Ask, own: Lanes) -> Said | str:
    """Where the channels are in the outputs, when ``own`` is what is in the input."""
    unique, period = told_apart(own, ask.extent) if ask.move is Move.ROTATE else (own, _END)
    shapes = _shapes(ask)
    arrays = [np.full(s, _NOTHING) if i != ask.port[1] else _marked(unique) for i, s in enumerate(shapes)]
    ties: dict[Port, Lanes] = {ask.port: slim(own)}
    for k, outs in enumerate(zip(*_run(ask, arrays), strict=True)):
        if ask.move is Move.ROTATE and not all(on_one_axis(out - _FIRST, ask.extent) for out in outs):
            return _CUT
        first, *others = (_filled(np.where(out < _FIRST, out, (out - _FIRST) % period + _FIRST)) for out in outs)
        if not all(np.array_equal(first, other) for other in others):
            return f"{ask.node.op_type} picks single channels at places that are computed"
        if ask.node.op_type == "Concat" and ask.move is Move.ROTATE and (first == _NOTHING).any():
            return "Concat puts other channels beside these"
        ties[OUT, k] = _lanes(first)
        if ask.node.op_type == "Concat" and not (first == _NOTHING).any():  # beside them, along another axis
            ties |= {(IN, i): ties[OUT, k] for i in range(len(ask.node.inputs))}
    return Said(ties, free=ask.node.op_type == "Pad")


def _backwards(ask: Ask) -> Answer:
    """Where the channels of an output come from: those elements alone, or also the others beside them, alike."""
    shapes, found = _shapes(ask), []
    ends = np.cumsum([int(np.prod(s)) for s in shapes])
    places = [np.arange(e - np.prod(s), e).reshape(s) + 1 for s, e in zip(shapes, ends, strict=True)]
    for outs in _run(ask, places):
        source = outs[ask.port[1]]
        lanes = np.broadcast_to(ask.lanes, source.shape)
        unique, period = told_apart(lanes, ask.extent) if ask.move is Move.ROTATE else (lanes, _END)
        taken = np.full(int(ends[-1]) + 1, _NOTHING)
        taken[source.ravel()[::-1]] = _marked(unique).ravel()[::-1]  # of several copies the first
        parts = [p.reshape(s) for p, s in zip(np.split(taken[1:], ends[:-1]), shapes, strict=True)]
        if not all(on_one_axis(part - _FIRST, ask.extent) for part in parts):
            return _CUT
        found.append([np.where(p < _FIRST, p, (p - _FIRST) % period + _FIRST) for p in parts])
    alone = [_choice(ask, parts, slim) for parts in found]
    alike = [_choice(ask, parts, _filled) for parts in found]
    said = [c[0] for c in (alike, alone) if c[0] is not None and all(_equal(c[0], other) for other in c)]
    if not said:
        return f"{ask.node.op_type} makes the channels"
    if len(said) == 1 or ask.move in ORDER or _equal(said[0], said[1]):
        return Said(said[0])
    return Said({}, either=tuple(Said(ties) for ties in said))


def _choice(ask: Ask, parts: list[np.ndarray], closed) -> dict[Port, Lanes] | None:
    """The ties of the inputs; None where channels were to vary along an axis of unknown size."""
    ties = {(IN, i): _lanes(closed(part)) for i, part in enumerate(parts)}
    for (_, slot), lanes in ties.items():
        shape = ask.shape(slot) or [None] * lanes.ndim
        if any(not isinstance(shape[a], int) for a in varying(lanes)):
            return None
        if lanes.size < parts[slot].size and edit.is_constant(ask.input(slot)) and ask.node.op_type == "Expand":
            return None
    return ties | {ask.port: ask.lanes}


def _equal(a: dict[Port, Lanes], b: dict[Port, Lanes] | None) -> bool:
    return b is not None and all(np.array_equal(lanes, b[port]) for port, lanes in a.items())


def _counted(ask: Ask, said: Said) -> Answer:
    """An operator does not count the channels if without the first it gives the same without the first."""
    if ask.node.op_type in ("Transpose", "Concat"):
        return said
    first, (axis,) = ask.lanes.reshape(-1)[0], ask.axes
    left = _forwards(ask, _widened(ask).compress(ask.lanes.reshape(-1) != first, axis))
    outs = [port for port in said.ties if port[0] == OUT]
    if isinstance(left, str) or any((said.ties[p] < 0).any() for p in outs):
        return f"{ask.node.op_type} counts the channels"
    same = all(np.array_equal(w[w != first], left.ties[p].ravel()) for p in outs if (w := said.ties[p].ravel()).size)
    return said if same else f"{ask.node.op_type} counts the channels"


def _run(ask: Ask, arrays: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """The outputs of the operator on arrays in place of its data: once, or for two choices of what is computed."""
    operands: list[list[np.ndarray | None]] = [[], []]
    for slot, value in enumerate(ask.node.inputs):
        for choice, given in enumerate(operands):
            given.append(arrays[slot] if slot < len(arrays) else _operand(ask, slot, value, choice))
    if ask.node.op_type == "Pad":
        operands = [[x if i != 2 else None for i, x in enumerate(given)] for given in operands]
    graph = ask.node.graph
    version = graph.opset_imports.get("", _NEWEST) if isinstance(graph, ir.Graph) else _NEWEST
    computed = any(v is not None and not edit.is_constant(v) for v in ask.node.inputs[len(arrays) :])
    found = [evaluate(ask.node, given, version) for given in operands[: 1 + computed]]
    for value, out in zip(ask.node.outputs, found[0], strict=False):
        if (shape := dims(value)) is not None and len(shape) != out.ndim:
            raise ValueError("its result has another rank than the graph says")
    return found


def _operand(ask: Ask, slot: int, value: ir.Value | None, choice: int) -> np.ndarray | None:
    if value is None or (array := edit.constant(value)) is not None:
        return None if value is None else array
    if ask.node.op_type == "Expand":
        return np.array([d if isinstance(d, int) else 1 for d in ask.shape(None) or ()])
    shape, stands = dims(value), _STANDS.get((ask.node.op_type, slot))
    if shape is None or stands is None:
        raise ValueError(f"its input {slot} is computed")
    return np.full([d if isinstance(d, int) else _OPEN for d in shape], stands[choice])


def _shapes(ask: Ask) -> list[list[int]]:
    """Of the data inputs, with a size for every open axis that holds all constant indices."""
    node = ask.node
    count = len(node.inputs) if node.op_type == "Concat" else 1
    known = [array for v in node.inputs[count:] if (array := edit.constant(v)) is not None and array.dtype.kind == "i"]
    open_ = 1 + max([_OPEN, *(int(n) for a in known for n in np.abs(a.reshape(-1)) if n < _MOST)])
    shapes = [ask.shape(i) for i in range(count)]
    if not ask.at_output:
        shapes[ask.port[1]] = [n if n > 1 else d for n, d in zip(ask.lanes.shape, ask.shape(ask.port[1]) or [None] * ask.lanes.ndim, strict=True)]
    if any(s is None for s in shapes):
        raise ValueError("the shape of an input is not known")
    columns = [[d for d in column if isinstance(d, int)] for column in zip(*(s for s in shapes if s), strict=True)]
    return [[d if isinstance(d, int) else (columns[a] or [open_])[0] for a, d in enumerate(s)] for s in shapes if s]


def _widened(ask: Ask) -> Lanes:
    return np.broadcast_to(ask.lanes, _shapes(ask)[ask.port[1]])


def _marked(lanes: Lanes) -> np.ndarray:
    return np.where(lanes < 0, _HOLE, lanes + _FIRST)


def _lanes(marked: np.ndarray) -> Lanes:
    return slim(np.maximum(marked - _FIRST, -1))


def _filled(marked: np.ndarray) -> np.ndarray:
    """One element along every axis on which all are the same, but for those that are nothing."""
    for axis in varying(marked):
        top = marked.max(axis, keepdims=True)
        marked = top if ((marked == top) | (marked == _NOTHING)).all() else marked
    return marked
