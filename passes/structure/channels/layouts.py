"""Where channels are around operators that move, copy, cut and join data."""

from __future__ import annotations

import numpy as np

from graphpress.graph import edit
from graphpress.passes.structure.channels.ask import IN, ORDER, OUT, Answer, Ask, Move, Port, Said
from graphpress.passes.structure.channels.lanes import (
    Dim,
    Lanes,
    dims,
    on_one_axis,
    operand,
    put_back,
    reshape,
    unbroken,
)

_CUT = "a part of the channels that mix is cut off"


def transposed(ask: Ask) -> Answer:
    """Transpose."""
    perm = list(edit.attribute(ask.node, "perm") or range(ask.lanes.ndim)[::-1])
    return ask.through(ask.lanes.transpose(np.argsort(perm) if ask.at_output else perm))


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


def expanded(ask: Ask) -> Answer:
    """Expand: copies of a channel are that channel."""
    before, after = ask.shape(), ask.shape(None)
    if before is None or after is None:
        return "the shapes around its Expand are not known"
    if not ask.at_output:
        return ask.through(ask.lanes.reshape([1] * (len(after) - ask.lanes.ndim) + list(ask.lanes.shape)))
    assert ask.node.inputs[0] is not None
    own, lacks = operand(ask.lanes, ask.node.inputs[0])
    one = (lacks and edit.is_constant(ask.node.inputs[0])) or not unbroken(own, ask.extent)
    return "Expand copies one number to all channels" if one else ask.through(own)


def joined(ask: Ask) -> Answer:
    """Concat, of channels or beside them."""
    axis = int(edit.attribute(ask.node, "axis")) % ask.lanes.ndim
    if axis in ask.axes:
        return _beside(ask, axis)
    ties: dict[Port, Lanes] = {(OUT, 0): ask.lanes}
    return Said(ties | {(IN, i): ask.lanes for i in range(len(ask.node.inputs))})


def _beside(ask: Ask, axis: int) -> Answer:
    if ask.move is Move.ROTATE:
        return "Concat puts other channels beside these"
    sizes = _sizes([ask.shape(i) for i in range(len(ask.node.inputs))], axis)
    if sizes is None:
        return "it joins channels along an axis of unknown size"
    ends = np.cumsum(sizes)
    index = [np.arange(e - n, e) for e, n in zip(ends, sizes, strict=True)]
    if not ask.at_output:
        return Said({ask.port: ask.lanes, (OUT, 0): put_back(ask.lanes, axis, index[ask.port[1]], int(ends[-1]))})
    return Said({(OUT, 0): ask.lanes} | {(IN, i): ask.lanes.take(at, axis) for i, at in enumerate(index)})


def _sizes(shapes: list[list[Dim] | None], axis: int) -> list[int] | None:
    found = [s[axis] if s is not None else None for s in shapes]
    known = [n for n in found if isinstance(n, int)]
    return known if len(known) == len(found) else None


def split(ask: Ask) -> Answer:
    """Split, across channels or of them."""
    axis = int(edit.attribute(ask.node, "axis", 0)) % ask.lanes.ndim
    alike = Said({(IN, 0): ask.lanes} | {(OUT, i): ask.lanes for i in range(len(ask.node.outputs))})
    sizes = _sizes([dims(o) for o in ask.node.outputs], axis)
    if sizes is None:
        return "Split cuts the channels at an unknown place" if axis in ask.axes else alike
    ends = np.cumsum(sizes)
    index = [np.arange(e - n, e) for e, n in zip(ends, sizes, strict=True)]
    if ask.at_output:
        return _from(ask, axis, index[ask.port[1]], int(ends[-1]), alike)
    if axis not in ask.axes:
        return alike
    if ask.move is Move.SLICE:
        return "Split counts the channels"
    parts: dict[Port, Lanes] = {(OUT, i): ask.lanes.take(at, axis) for i, at in enumerate(index)}
    return Said({(IN, 0): ask.lanes} | parts) if all(unbroken(p, ask.extent) for p in parts.values()) else _CUT


def _from(ask: Ask, axis: int, index: np.ndarray, full: int, alike: Said) -> Answer:
    """What was taken from an axis: lanes of that part alone, or the same for all its indices.

    On an axis without channels both may be: tokens are alike, q, k and v of one projection are not.
    """
    alone = Said({(IN, 0): put_back(ask.lanes, axis, index, full), ask.port: ask.lanes})
    if axis in ask.axes:
        return alone
    return alike if ask.move in ORDER or len(index) == full else Said({}, either=(alike, alone))


def sliced(ask: Ask) -> Answer:
    """Slice."""
    rank, axes = ask.lanes.ndim, ask.ints(3, "axes")
    starts, ends, steps = (ask.ints(i, n) for i, n in ((1, "starts"), (2, "ends"), (4, "steps")))
    if axes is None and ask.input(3) is not None:
        return "Slice has computed axes"
    lanes, shape = ask.lanes, ask.shape()
    for i, axis in enumerate(a % rank for a in (range(len(starts or ends or ask.axes)) if axes is None else axes)):
        inside, full = axis in ask.axes, shape[axis] if shape is not None else None
        known = starts is not None and ends is not None and (ask.input(4) is None or steps is not None)
        if starts is None or ends is None or not known or not isinstance(full, int):
            if inside:
                return "Slice cuts the channels at a place that is computed"
            continue
        index = np.arange(full)[starts[i] : ends[i] : steps[i] if steps else 1]
        if not inside:
            if ask.at_output and len(starts) == 1:
                return _from(ask, axis, index, full, ask.through(lanes))
        elif ask.at_output:
            lanes = put_back(lanes, axis, index, full)
        elif ask.move is Move.SLICE or not _whole_pieces(ask, lanes, axis, index):
            return _CUT
        else:
            lanes = lanes.take(index, axis)
    return ask.through(lanes)


def _whole_pieces(ask: Ask, lanes: Lanes, axis: int, index: np.ndarray) -> bool:
    """Whether cutting out ``index`` leaves every run whole."""
    pieces = [lanes.take(at, axis) for at in (np.arange(min(index, default=0)), index)]
    return ask.extent == 1 or (all(unbroken(p, ask.extent) for p in pieces) and bool((np.diff(index) == 1).all()))


def gathered(ask: Ask) -> Answer:
    """Gather: rows of a table, or entries along another axis; at constant indices also channels."""
    shape, index = ask.shape(), ask.shape(1)
    if ask.port == (IN, 1) or shape is None or index is None:
        return "Gather reads the values as indices, or of unknown rank"
    axis, count = int(edit.attribute(ask.node, "axis", 0)) % len(shape), len(index)
    at, full = edit.constant(ask.input(1)), shape[axis]
    if not ask.at_output:
        return _picks(ask, axis, at, count)
    lanes = ask.lanes
    made = any(a in ask.axes for a in range(axis, axis + count))
    if made and (at is None or not isinstance(full, int)):
        return "Gather makes the channels"
    flat = lanes.reshape(*lanes.shape[:axis], -1, *lanes.shape[axis + count :])
    alike = ask.through(flat)
    if at is None or not isinstance(full, int) or (not made and at.size != 1):
        return alike
    alone = ask.through(put_back(flat, axis, at.reshape(-1) % full, full))
    return alone if made else alike if ask.move in ORDER else Said({}, either=(alike, alone))


def _picks(ask: Ask, axis: int, at: np.ndarray | None, count: int) -> Answer:
    if axis not in ask.axes:
        lanes = ask.lanes.squeeze(axis)
        return ask.through(np.expand_dims(lanes, tuple(range(axis, axis + count))))
    if at is None or ask.move is Move.SLICE or not unbroken(ask.lanes, ask.extent, axis):
        return "Gather picks single channels"
    return ask.through(ask.lanes.take(at, axis))


def gathered_nd(ask: Ask) -> Answer:
    """GatherND: what stands on the axes behind those that are indexed."""
    shape, index = ask.shape(), ask.shape(1)
    depth = index[-1] if index else None
    if ask.port == (IN, 1) or shape is None or index is None or not isinstance(depth, int):
        return "GatherND reads the values as indices, or of unknown rank"
    depth += int(edit.attribute(ask.node, "batch_dims", 0))
    kept = len(shape) - depth
    if any(a < ask.lanes.ndim - kept for a in ask.axes):
        return "GatherND picks single channels"
    tail = ask.lanes.shape[ask.lanes.ndim - kept :]
    if not ask.at_output:
        return ask.through(ask.lanes.reshape([1] * (len(index) - 1) + list(tail)))
    return ask.through(ask.lanes.reshape([1] * depth + list(tail)))


def padded(ask: Ask) -> Answer:
    """Pad. What is added to channels is alike, so it may change places among itself; factors and turns leave zeros."""
    pads, rank = ask.ints(1, "pads"), ask.lanes.ndim
    if pads is None or ask.input(3) is not None:
        return "its widths are computed, or given for some axes"
    mode = edit.attribute(ask.node, "mode", "constant")
    filler = np.zeros(1) if ask.input(2) is None else edit.constant(ask.input(2))
    if mode == "constant" and ask.move not in ORDER and (filler is None or filler.any()):
        return "Pad puts one number other than 0 beside all channels"
    lanes = ask.lanes
    for axis in ask.axes:
        low, high = pads[axis], pads[axis + rank]
        if not (low or high):
            continue
        if min(low, high) < 0 or mode != "constant" or ask.move is Move.SLICE:
            return "Pad repeats or cuts channels, or counts them"
        count = lanes.shape[axis] - (low + high if ask.at_output else 0)
        index = np.arange(low, low + count)
        if not ask.at_output:
            lanes = put_back(lanes, axis, index, low + count + high)
        elif not unbroken(lanes.take(np.arange(low), axis), ask.extent) or count < 1:
            return _CUT
        else:
            lanes = lanes.take(index, axis)
    return ask.through(lanes, free=True) if unbroken(lanes, ask.extent) else _CUT
