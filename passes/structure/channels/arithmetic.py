"""Where channels are around operators that compute: sums, products, layers, attention, norms, reductions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.passes.structure.channels.ask import (
    FACTOR,
    IN,
    ORDER,
    OUT,
    READER,
    Answer,
    Ask,
    Holder,
    Move,
    Port,
    Said,
)
from graphpress.passes.structure.channels.lanes import Lanes, along, on_one_axis, operand, varying
from graphpress.passes.structure.layers.linear import FLOATS, Linear, linear


def same(ask: Ask) -> Answer:
    """One channel in, the same out."""
    return ask.through(ask.lanes)


def cast(ask: Ask) -> Answer:
    """Between floats."""
    floats = ask.move in ORDER or edit.attribute(ask.node, "to") in FLOATS
    return same(ask) if floats else "Cast rounds the channels"


def dropout(ask: Ask) -> Answer:
    """Outside training it does nothing."""
    flag = ask.input(2)
    training = np.array(False) if flag is None else edit.constant(flag)
    return "Dropout may be in training mode" if training is None or training.any() else same(ask)


def asks(ask: Ask) -> Answer:
    """Shape and Size read no channels."""
    return Said({})


def share(ask: Ask) -> Answer:
    """Operands hold the same channels at equal places; a constant changes along."""
    lanes = _joint(ask)
    if isinstance(lanes, str):
        return lanes
    ties: dict[Port, Lanes] = {(OUT, 0): lanes}
    held, apart = [], []
    for i, value in enumerate(ask.node.inputs):
        if value is None or (ask.node.op_type == "Where" and i == 0 and ask.move not in ORDER):
            continue
        own, lacks = operand(lanes, value)
        if lacks and ask.move in ORDER:
            has = [a for a in varying(lanes) if a not in lacks]
            apart += [(lanes, has)] if has else []
        elif lacks and edit.is_constant(value):  # one number for all: written out
            held.append(
                Holder(
                    ask.node, i, lanes.reshape(lanes.shape[min(lanes.ndim - len(value.shape or ()), *varying(lanes)) :])
                )
            )
        elif lacks:
            return f"{ask.node.op_type} adds the same computed number to all channels"
        else:
            ties[IN, i] = own
    return Said(ties, tuple(held), tuple(apart))


def _joint(ask: Ask) -> Lanes | str:
    """Lanes of what broadcasts the operands against one another."""
    shapes = [ask.shape(i) for i, v in enumerate(ask.node.inputs) if v is not None]
    if any(s is None for s in shapes):
        return "the shape of an operand is not known"
    rank = max(len(s) for s in shapes if s is not None)
    return ask.lanes.reshape([1] * (rank - ask.lanes.ndim) + list(ask.lanes.shape))


def _even(ask: Ask, lanes: Lanes, value: ir.Value | None) -> bool:
    """Whether an operand is one number for each run."""
    if value is None:
        return True
    lacks = operand(lanes, value)[1]
    return bool(lacks) and on_one_axis(lanes, ask.extent, lacks)


def where(ask: Ask) -> Answer:
    """A choice of whole runs is a sum."""
    lanes = _joint(ask)
    if not isinstance(lanes, str) and ask.move not in ORDER:
        alone = operand(lanes, ask.node.inputs[0])[1] == varying(lanes) if ask.node.inputs[0] is not None else False
        if ask.port == (IN, 0) or not (alone or (ask.move is Move.ROTATE and _even(ask, lanes, ask.node.inputs[0]))):
            return "Where chooses channel by channel"
    return share(ask)


def product(ask: Ask) -> Answer:
    """An order of both operands; a factor of one; a turn beside what is the same for all channels."""
    if ask.move in ORDER:
        return share(ask)
    lanes = _joint(ask)
    if isinstance(lanes, str):
        return lanes
    slots = (0, 1) if ask.node.op_type == "Mul" else (0,)
    found = {i: operand(lanes, v) for i in (0, 1) if (v := ask.node.inputs[i]) is not None}
    full = {i: own for i, (own, lacks) in found.items() if i in slots and not lacks}
    return (_factor if ask.move in FACTOR else _turned)(ask, lanes, full)


def _turned(ask: Ask, lanes: Lanes, full: dict[int, Lanes]) -> Answer:
    for i, own in full.items():
        other = ask.node.inputs[1 - i]
        if not edit.is_constant(ask.node.inputs[i]) and (_even(ask, lanes, other) or _uniform(other)):
            return Said({(IN, i): own, (OUT, 0): lanes})
    if any(edit.is_constant(v) for v in ask.node.inputs):
        return f"{ask.node.op_type} scales each channel by a constant of its own"
    return f"{ask.node.op_type} joins the channels of two computed values one by one"


def _factor(ask: Ask, lanes: Lanes, full: dict[int, Lanes]) -> Answer:
    if not ask.at_output:
        twice = ask.node.inputs[0] is ask.node.inputs[1]
        if twice or ask.port[1] not in full:
            return f"{ask.node.op_type} multiplies the channels with themselves, or divides by them"
        return Said({ask.port: ask.lanes, (OUT, 0): lanes})
    fixed = [i for i in full if edit.is_constant(ask.node.inputs[i])]
    order = [*fixed, *(i for i in sorted(full, reverse=True) if i not in fixed)]
    choices = [Said({(OUT, 0): lanes, (IN, i): full[i]}) for i in order]
    return Said({}, either=tuple(choices)) if choices else f"no side of {ask.node.name!r} has its channels"


def _uniform(value: ir.Value | None) -> bool:
    array = edit.constant(value)
    return array is not None and array.size > 0 and bool((array == array.reshape(-1)[0]).all())


def slope(ask: Ask) -> Answer:
    """PRelu with a constant slope."""
    fixed = edit.is_constant(ask.input(1)) and ask.port != (IN, 1)
    return share(ask) if ask.move in ORDER else same(ask) if fixed else "the slope of PRelu is computed"


def layer(ask: Ask) -> Answer:
    """MatMul, Gemm, Conv: one set of channels is read, another made."""
    view = linear(ask.node)
    if isinstance(view, str):
        return _computed(ask) if ask.node.op_type == "MatMul" else view
    if not ask.at_output and ask.port[1] != 0:
        return "a weight is computed from it"
    axis = 1 if ask.node.op_type == "Conv" else ask.lanes.ndim - 1
    if ask.axes != [axis]:
        rows = ask.node.op_type == "MatMul" and axis not in ask.axes
        return same(ask) if rows else "a layer's rows or pixels are no channels: they stand along another axis"
    if view.groups != 1 and (ask.move in (Move.ROTATE, Move.SLICE) or not ask.at_output):
        return _grouped(ask, view)
    if not ask.at_output:
        return Said({ask.port: ask.lanes}, (Holder(ask.node, 1, _stored(view, ask.lanes, reads=True), READER),))
    apart = ((ask.lanes.reshape(view.groups, -1), [0]),) if view.groups != 1 else ()
    return Said({ask.port: ask.lanes}, _rows(view, ask.lanes), apart)


def _stored(view: Linear, lanes: Lanes, *, reads: bool) -> Lanes:
    """On the axis of the weight, as the graph stores it, that reads or makes the channels."""
    return along(lanes, int(reads) ^ int(view.transposed), len(view.shape))


def _rows(view: Linear, lanes: Lanes) -> tuple[Holder, ...]:
    biased = view.node.op_type != "MatMul" and len(view.node.inputs) > 2 and view.node.inputs[2] is not None
    bias = (Holder(view.node, 2, lanes.reshape(-1)),) if biased else ()
    return (Holder(view.node, 1, _stored(view, lanes, reads=False)), *bias)


def _grouped(ask: Ask, view: Linear) -> Answer:
    """A depthwise convolution keeps each channel to itself."""
    if view.shape[1] != 1 or ask.move in (Move.ROTATE, Move.SLICE):
        return f"a grouped convolution keeps its groups apart: it reads them in {view.groups} groups"
    made = np.repeat(ask.lanes, view.shape[0] // view.groups, axis=1)
    if ask.move in FACTOR:
        return Said({ask.port: ask.lanes}, (Holder(ask.node, 1, _stored(view, made, reads=False), READER),))
    return Said({ask.port: ask.lanes, (OUT, 0): made}, _rows(view, made))


_SUMMED = {(IN, 0): -1, (IN, 1): -2}
_PATHS: tuple[dict[Port, int], ...] = (_SUMMED, {(IN, 1): -1, (OUT, 0): -1}, {(IN, 0): -2, (OUT, 0): -2})


def _computed(ask: Ask) -> Answer:
    """The axis that is summed over meets itself; rows of the first and columns of the second operand go on."""
    shapes = [ask.shape(0), ask.shape(1)]
    if any(s is None or len(s) < 2 for s in shapes):
        return "the ranks around its MatMul are not known, or it is by a vector"
    rank = max(len(s) for s in shapes if s is not None)
    lanes = ask.lanes.reshape([1] * (rank - ask.lanes.ndim) + list(ask.lanes.shape))
    matrix = [a - rank for a in varying(lanes) if a >= rank - 2]
    path = next((p for p in _PATHS if ask.port in p and matrix == [p[ask.port]]), None)
    if path is None:
        return "the channels are a batch axis of its MatMul, or rows and columns"
    if path is _SUMMED and ask.move is not Move.ROTATE:
        return "it multiplies computed channels"
    return "the shape of a MatMul is not known" if ask.shape(None) is None else _on_path(ask, lanes, path)


def _on_path(ask: Ask, lanes: Lanes, path: dict[Port, int]) -> Answer:
    ties: dict[Port, Lanes] = {}
    held: list[Holder] = []
    for (kind, slot), axis in path.items():
        value = (ask.node.inputs if kind == IN else ask.node.outputs)[slot]
        assert value is not None
        own, lacks = operand(lanes if axis == path[ask.port] else lanes.swapaxes(-1, -2), value)
        if kind == IN and edit.is_constant(value) and lacks:
            return "one matrix makes or reads the channels of several batches"
        if kind == IN and edit.is_constant(value) and path is _SUMMED:
            held.append(Holder(ask.node, slot, own, READER))
        else:
            ties[kind, slot] = own
    other = ask.node.inputs[0 if (IN, 1) in path else 1]
    batch = [a for a in varying(lanes) if a < lanes.ndim - 2]
    told = [a for a in batch if other is not None and a not in operand(lanes, other)[1]]
    return Said(ties, tuple(held), ((lanes, told),) if told else ())


_SHARED: tuple[Port, ...] = ((IN, 1), (IN, 2))  # keys and values, which may have fewer heads


def attention(ask: Ask) -> Answer:
    """q and k meet in one product, head by head; v goes through to the output. Caches leave the graph."""
    groups: tuple[tuple[Port, ...], ...] = (((IN, 0), (IN, 1)), ((IN, 2), (OUT, 0)))
    group = next((g for g in groups if ask.port in g), None)
    if group is None:
        return "it is a mask or a cache of an Attention"
    caches = [*ask.node.inputs[4:6], *ask.node.outputs[1:3]]
    if any(v is not None and (v.producer() is not ask.node or v.uses() or v.is_graph_output()) for v in caches):
        return "the cache of its Attention is an input or output of its own: it keeps keys and values"
    if group == groups[0] and ask.move is not Move.ROTATE:
        return "it compares queries and keys by their place"
    lanes, counts, flat = ask.lanes, _head_counts(ask), ask.lanes.ndim == 3
    heads = counts[ask.port in _SHARED]
    if flat and heads and not lanes.size % heads:
        lanes = lanes.reshape(1, 1, heads, -1).transpose(0, 2, 1, 3)
    if lanes.ndim != 4 or varying(lanes) not in ([1, 3], [3]) or (lanes.shape[1] > 1 and None in counts):
        return "its values are not laid out as batch, heads, tokens, channels of known sizes"
    if not on_one_axis(lanes, ask.extent, [3]):
        return "the channels that mix are of more than one head of an Attention"
    (other,) = (p for p in group if p != ask.port)
    return Said({ask.port: ask.lanes, other: _of_heads(lanes, counts, other, flat)}, apart=((lanes, [1]),))


def _head_counts(ask: Ask) -> tuple[int | None, int | None]:
    """Heads of the queries, and of keys and values."""
    if ask.lanes.ndim == 3:
        return edit.attribute(ask.node, "q_num_heads"), edit.attribute(ask.node, "kv_num_heads")
    query, key = ((ask.shape(i) or [None] * 4)[1] for i in (0, 1))
    return query if isinstance(query, int) else None, key if isinstance(key, int) else None


def _of_heads(lanes: Lanes, counts: tuple[int | None, int | None], port: Port, flat: bool) -> Lanes:
    """Lanes [1, heads, 1, channels] at the port that they meet: shared heads stand for each that reads them."""
    query, key = counts
    if lanes.shape[1] > 1 and query and key:
        lanes = lanes[:, :: query // key] if port in _SHARED else np.repeat(lanes, query // key, axis=1)
    if not flat:
        return lanes
    full = np.broadcast_to(lanes, (1, (key if port in _SHARED else query) or 1, 1, lanes.shape[3]))
    return full.transpose(0, 2, 1, 3).reshape(1, 1, -1)


def norm(ask: Ask) -> Answer:
    """LayerNormalization, RMSNormalization: a factor is taken up by the gain, an order passes."""
    start = int(edit.attribute(ask.node, "axis", -1)) % ask.lanes.ndim
    inside = [a for a in ask.axes if a >= start]
    if ask.move in FACTOR and not ask.at_output:
        return f"{ask.node.op_type} normalizes over its channels"
    held, apart = [], [(ask.lanes, axes) for axes in ([a for a in ask.axes if a < start],) if axes]
    for slot, value in enumerate(ask.node.inputs[1:], 1):
        if value is None:
            continue
        own, lacks = operand(ask.lanes, value)
        if not edit.is_constant(value) or len(value.shape or ()) > ask.lanes.ndim:
            return f"the {_NAMES[slot]} of {ask.node.name!r} is computed"
        if ask.move in FACTOR and (lacks or inside != ask.axes):
            return f"the {_NAMES[slot]} of {ask.node.name!r} is not one constant for each channel"
        has = [a for a in ask.axes if a not in lacks]
        if inside == ask.axes and not lacks:
            held.append(Holder(ask.node, slot, own))
        elif inside != ask.axes or has:
            apart.append((ask.lanes, inside if inside != ask.axes else has))
    if ask.move in FACTOR:
        return Said({(OUT, 0): ask.lanes}, tuple(held)) if held else f"{ask.node.name!r} has no gain"
    return ask.through(ask.lanes, held, apart=tuple(apart))


_NAMES = ("", "gain", "bias")


def statistics(ask: Ask) -> Answer:
    """BatchNormalization and InstanceNormalization: constants for each channel; a factor is taken up by two of them."""
    if ask.axes != [1] or not all(edit.is_constant(v) for v in ask.node.inputs[1:]):
        return "its statistics are computed, or are of another axis"
    held = [Holder(ask.node, i, ask.lanes.reshape(-1)) for i in range(1, len(ask.node.inputs))]
    if ask.move in FACTOR:
        known = "its statistics are those of the channels as they are"
        return Said({(OUT, 0): ask.lanes}, tuple(held[:2])) if ask.at_output else known
    return ask.through(ask.lanes, held)


def summed_along(ask: Ask) -> Answer:
    """Softmax and the like: any order within what is summed."""
    node = ask.node
    version = node.graph.opset_imports.get("", 1) if isinstance(node.graph, ir.Graph) else 1
    if version < 13 and node.op_type != "LpNormalization":
        return "before opset 13 it runs along several axes"
    axis = int(edit.attribute(node, "axis", -1)) % ask.lanes.ndim
    others = [a for a in ask.axes if a != axis] if axis in ask.axes else []
    return ask.through(ask.lanes, apart=((ask.lanes, others),) if others else ())


def reduce(ask: Ask) -> Answer:
    """Over other axes; over all of the channels it gives the same in any order."""
    shape, given = ask.shape(), ask.input(1) is not None
    axes = edit.constant(ask.input(1)) if given else edit.attribute(ask.node, "axes")
    if shape is None or (axes is None and given):
        return f"{ask.node.op_type} may reduce the channels"
    rank = len(shape)
    gone = sorted({int(a) % rank for a in (range(rank) if axes is None else np.ravel(axes))})
    short = ask.at_output and not edit.attribute(ask.node, "keepdims", 1)
    lanes = np.expand_dims(ask.lanes, tuple(gone)) if short else ask.lanes
    over = [a for a in varying(lanes) if a in gone]
    if over:
        free = ask.move is Move.PERMUTE and over == varying(lanes)
        return Said({}) if free else f"{ask.node.op_type} reduces the channels, or a part of them"
    if ask.at_output:
        return ask.through(lanes)
    return ask.through(lanes if edit.attribute(ask.node, "keepdims", 1) else lanes.squeeze(tuple(gone)))


def pool(ask: Ask) -> Answer:
    """Pools and Resize, in space only."""
    before, after = ask.shape(), ask.shape(None)
    if ask.axes != [1] or before is None or after is None or before[1] != after[1]:
        return f"{ask.node.op_type} mixes neighbours along the channels"
    if any(o.uses() or o.is_graph_output() for o in ask.node.outputs[1:]):
        return "its indices are read"
    return same(ask)
