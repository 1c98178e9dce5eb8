"""Operators that move, copy, cut and join data: their rule is the operator itself, run on the numbers of channels.

Forwards it runs on lanes. Backwards it runs on the places of its inputs, which tells where each element of the output
comes from. Axes of unknown size, along which lanes never vary, get a small one; for what is computed stand two values
that must give the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.graph.evaluate import evaluate
from graphpress.passes.structure.channels.ask import IN, ORDER, OUT, Answer, Ask, Move, Port, Said
from graphpress.passes.structure.channels.lanes import Lanes, on_one_axis, reshape, slim, told_apart, varying

_NOTHING, _HOLE, _FIRST = 0, 1, 2  # in what an operator runs on: of no input, -1 of the lanes, channel 0
_OPEN, _MOST, _END, _NEWEST = 7, 1 << 12, np.iinfo(np.int64).max, 23
_STANDS = {  # for computed operands: the first or the last of an axis, all of it, each of it
    ("Gather", 1): (0, -1), ("GatherND", 1): (0, -1), ("Slice", 1): (0, -1), ("Slice", 2): (_END, _END),
    ("Slice", 4): (1, 1),
}  # fmt: skip


def reshaped(ask: Ask) -> Answer:
    """Reshape, Flatten, Squeeze, Unsqueeze."""
    before, after = (ask.shape(None), ask.shape()) if ask.at_output else (ask.shape(), ask.shape(None))
    if before is None or after is None:
        return "the shapes around its Reshape are not known"
    made = reshape(ask.lanes, before, after)
    if made is None and ask.extent > 1:  # runs that fall together turn alike
        made = reshape(np.where(ask.lanes < 0, -1, ask.lanes % ask.extent), before, after)
    if made is None:
        return "a Reshape breaks up the channels: it mixes them with an axis of unknown size"
    return ask.through(made) if on_one_axis(made, ask.extent) else "a Reshape breaks up the channels that mix"


def rearranged(ask: Ask) -> Answer:
    """Transpose, Expand, Concat, Split, Slice, Gather, GatherND, Pad."""
    op = ask.node.op_type
    if not ask.at_output and ask.port[1] and op != "Concat":
        return f"{op} reads the values as indices"
    if op == "Pad" and ask.move not in ORDER and edit.attribute(ask.node, "mode", "constant") == "constant":
        filler = edit.constant(ask.input(2)) if ask.input(2) else edit.attribute(ask.node, "value", 0.0)
        if filler is None or np.any(filler):
            return "Pad puts one number other than 0 beside all channels"
    try:
        return (_backwards if ask.at_output else _forwards)(ask)
    except ValueError as e:  # of the operator itself too
        return f"{op} {e}"


def _forwards(ask: Ask) -> Said:
    axis, own = ask.port[1], np.broadcast_to(ask.lanes, _shapes(ask)[ask.port[1]])
    made, op = _made(ask, own), ask.node.op_type
    beside = [bool((m == _NOTHING).any()) for m in made]  # Concat, Pad: something else stands along the same axis
    if op == "Concat" and ask.move is Move.ROTATE and any(beside):
        raise ValueError("puts other channels beside these")
    if ask.move is Move.SLICE and op not in ("Transpose", "Concat"):
        first, (axis,) = ask.lanes.reshape(-1)[0], ask.axes
        left = _made(ask, own.compress(ask.lanes.reshape(-1) != first, axis))
        same = (np.array_equal(a[a != first + _FIRST], b.reshape(-1)) for a, b in zip(made, left, strict=True))
        if any(beside) or not all(same):  # without a channel it is to give the same without that channel
            raise ValueError("counts the channels")
    ties: dict[Port, Lanes] = {(OUT, k): _lanes(m) for k, m in enumerate(made)}
    if op == "Concat" and not any(beside):
        ties |= {(IN, i): ties[OUT, 0] for i in range(len(ask.node.inputs))}
    return Said({ask.port: ask.lanes} | ties, free=op == "Pad")


def _made(ask: Ask, own: Lanes) -> list[np.ndarray]:
    """Each output, when ``own`` is in the input that is asked for."""
    given, restored = _given(ask, own)
    arrays = [given if i == ask.port[1] else np.full(s, _NOTHING) for i, s in enumerate(_shapes(ask))]
    choices = [[_filled(restored(out)) for out in outs] for outs in _run(ask, arrays)]
    if not all(map(np.array_equal, choices[0], choices[-1])):
        raise ValueError("picks single channels at a place that is computed")
    return choices[0]


def _backwards(ask: Ask) -> Said:
    """Where the channels of an output come from: those elements alone, or also the others beside them, alike."""
    shapes = _shapes(ask)
    ends = np.cumsum([np.prod(s, dtype=np.int64) for s in shapes])
    places = [p.reshape(s) for p, s in zip(np.split(np.arange(ends[-1]) + 1, ends[:-1]), shapes, strict=True)]
    choices = []
    for outs in _run(ask, places):
        source = outs[ask.port[1]]
        given, restored = _given(ask, np.broadcast_to(ask.lanes, source.shape))
        taken = np.full(ends[-1] + 1, _NOTHING)
        taken[source.ravel()[::-1]] = given.ravel()[::-1]  # of several copies the first
        parts = zip(np.split(taken[1:], ends[:-1]), shapes, strict=True)
        choices.append([restored(part.reshape(s)) for part, s in parts])
    found: list[dict[Port, Lanes]] = []
    for close in (_filled, slim):
        one, other = ({(IN, i): _lanes(close(p)) for i, p in enumerate(parts)} for parts in (choices[0], choices[-1]))
        if _equal(one, other) and _tellable(ask, one) and not (found and _equal(one, found[0])):
            found.append(one)
    if not found:
        raise ValueError("makes the channels, of one number or at a place that is computed")
    ways = [Said(ties | {ask.port: ask.lanes}) for ties in found]
    return ways[0] if len(ways) == 1 or ask.move in ORDER else Said({}, either=tuple(ways))


def _tellable(ask: Ask, ties: dict[Port, Lanes]) -> bool:
    """Whether lanes vary along axes of known size only, and a constant holds a number for each channel."""
    shapes = [ask.shape(slot) or [] for _, slot in ties]
    open_ = any(
        not isinstance(shape[a], int) for shape, t in zip(shapes, ties.values(), strict=True) for a in varying(t)
    )
    spread = ask.node.op_type == "Expand" and edit.is_constant(ask.input(0)) and ties[IN, 0].size < ask.lanes.size
    return not open_ and not spread


def _equal(a: dict[Port, Lanes], b: dict[Port, Lanes]) -> bool:
    return all(np.array_equal(lanes, b[port]) for port, lanes in a.items())


def _given(ask: Ask, lanes: Lanes) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """What an operator runs on, and how its result is read, in which runs must be whole."""
    own, period = told_apart(lanes, ask.extent) if ask.extent > 1 else (lanes, _END)

    def restored(out: np.ndarray) -> np.ndarray:
        if not on_one_axis(out - _FIRST, ask.extent):
            raise ValueError("picks single channels: a part of those that mix is cut off")
        return np.where(out < _FIRST, out, (out - _FIRST) % period + _FIRST)

    return np.where(own < 0, _HOLE, own + _FIRST), restored


def _run(ask: Ask, arrays: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """The outputs of the operator on arrays in place of its data: once, or twice where an operand is computed."""
    node, graph = ask.node, ask.node.graph
    rest = range(len(arrays), len(node.inputs) if node.op_type != "Pad" else 2)  # what Pad puts beside them is nothing
    computed = any(ask.input(slot) is not None and not edit.is_constant(ask.input(slot)) for slot in rest)
    version = graph.opset_imports.get("", _NEWEST) if isinstance(graph, ir.Graph) else _NEWEST
    found = [
        evaluate(node, [*arrays, *(_operand(ask, slot, choice) for slot in rest)], version)
        for choice in range(1 + computed)
    ]
    shape = ask.shape(None)
    if shape is not None and len(shape) != found[0][0].ndim:
        raise ValueError("gives another rank than the graph says")
    return found


def _operand(ask: Ask, slot: int, choice: int) -> np.ndarray | None:
    if ask.input(slot) is None or edit.is_constant(ask.input(slot)):
        return edit.constant(ask.input(slot))
    if ask.node.op_type == "Expand":
        return np.array([d if isinstance(d, int) else 1 for d in ask.shape(None) or ()])
    shape, stands = ask.shape(slot), _STANDS.get((ask.node.op_type, slot))
    if shape is None or stands is None:
        raise ValueError("moves them to a place that is computed")
    return np.full([d if isinstance(d, int) else _OPEN for d in shape], stands[choice])


def _shapes(ask: Ask) -> list[list[int]]:
    """Of the data inputs; an axis of unknown size gets one that holds all constant indices."""
    count = len(ask.node.inputs) if ask.node.op_type == "Concat" else 1
    shapes = [ask.shape(i) for i in range(count)]
    if any(s is None or len(s) != len(shapes[0] or ()) for s in shapes):
        raise ValueError("reads a value of unknown shape")
    constants = [c for v in ask.node.inputs[count:] if (c := edit.constant(v)) is not None and c.dtype.kind == "i"]
    some = 1 + max([_OPEN, *(int(n) for c in constants for n in np.abs(c.reshape(-1)) if n < _MOST)])
    columns = list(zip(*(s or () for s in shapes), strict=True))
    known = [next((d for d in column if isinstance(d, int)), some) for column in columns]
    return [[d if isinstance(d, int) else n for d, n in zip(s or (), known, strict=True)] for s in shapes]


def _lanes(marked: np.ndarray) -> Lanes:
    return slim(np.maximum(marked - _FIRST, -1))


def _filled(marked: np.ndarray) -> np.ndarray:
    """One element along every axis on which all are the same, but for those that are nothing."""
    for axis in varying(marked):
        top = marked.max(axis, keepdims=True)
        marked = top if ((marked == top) | (marked == _NOTHING)).all() else marked
    return marked
