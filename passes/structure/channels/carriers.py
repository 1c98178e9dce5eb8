"""Which operators carry a change of basis of some channels from one of their values to the others, and where to.

A rule is given one port of a node (an input or an output) and the place of the channels there. It says where the same
channels are at the other ports, that a weight begins or ends them here, or why the operator lets them not pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.passes.structure.channels.place import Place, aligned, dims, reshaped, size
from graphpress.passes.structure.layers.linear import Linear, linear

IN, OUT = "in", "out"
Port: TypeAlias = tuple[str, int]
Ties: TypeAlias = dict[Port, Place]


@dataclass(frozen=True)
class End:
    """A weight writes the channels (its rows turn) or reads them (its columns turn).

    Attributes:
        side: ``writer`` or ``reader``.
        slot: The input that holds it.
        axis: The axis of it, as the graph stores it, that runs over the channels.
        bias: The input that holds a bias of the same channels (writers only), or None.
    """

    side: Literal["writer", "reader"]
    slot: int
    axis: int
    bias: int | None = None


Said: TypeAlias = Ties | End | str
Rule: TypeAlias = Callable[[ir.Node, Port, Place], Said]


def rule(node: ir.Node) -> Rule:
    """The rule of a node; one that refuses where none is known."""
    if node.domain == "" and node.op_type in _RULES:
        return _RULES[node.op_type]
    return lambda node, port, place: f"{node.op_type} acts on the channels one by one, or mixes them"


def value_at(node: ir.Node, port: Port) -> ir.Value | None:
    """The value at a port."""
    return (node.inputs if port[0] == IN else node.outputs)[port[1]]


def _rank(value: ir.Value | None) -> int | None:
    shape = dims(value)
    return None if shape is None else len(shape)


def _sum_rank(node: ir.Node) -> int | None:
    """The rank of what broadcasts its inputs against one another."""
    ranks = [_rank(v) for v in node.inputs if v is not None]
    known = [r for r in ranks if r is not None]
    return _rank(node.outputs[0]) or (max(known) if len(known) == len(ranks) else None)


def _same(node: ir.Node, port: Port, place: Place) -> Said:
    return {(IN, 0): place, (OUT, 0): place}


def _asks(node: ir.Node, port: Port, place: Place) -> Said:
    """Shape and Size read no channels."""
    return {}


def _dropout(node: ir.Node, port: Port, place: Place) -> Said:
    training = edit.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.array(False)
    return "Dropout may be in training mode" if training is None or training.any() else _same(node, port, place)


def _add(node: ir.Node, port: Port, place: Place) -> Said:
    """All operands of a sum are of one basis; a constant one is written in it."""
    rank = _sum_rank(node)
    at = _out_place(node, port, place, rank)
    if isinstance(at, str) or rank is None:
        return at if isinstance(at, str) else "the rank is not known"
    ties: Ties = {(OUT, 0): at}
    for i, value in enumerate(node.inputs):
        if value is None or (node.op_type == "Where" and i == 0):
            continue
        own = aligned(value, at.axis, rank)
        if own is not None:
            ties[IN, i] = at.on(own)
        elif edit.is_constant(value):
            if at.start or at.stop != size(node.outputs[0], at.axis):
                return f"{node.op_type} with a constant covers other channels as well"
            ties[IN, i] = at.on(at.axis - rank)  # broadcast over the channels: written out before it is turned
        else:
            return f"{node.op_type} adds the same computed number to all channels"
    return ties


def _out_place(node: ir.Node, port: Port, place: Place, rank: int | None) -> Place | str:
    """The place at the output of an operator that broadcasts."""
    if port[0] == OUT:
        return place
    own = _rank(value_at(node, port))
    return "the rank is not known" if rank is None or own is None else place.on(place.axis + rank - own)


def _where(node: ir.Node, port: Port, place: Place) -> Said:
    rank = _sum_rank(node)
    at = _out_place(node, port, place, rank)
    condition = node.inputs[0]
    if isinstance(at, str) or rank is None or condition is None:
        return at if isinstance(at, str) else "the rank is not known"
    if port == (IN, 0) or dims(condition) is None or aligned(condition, at.axis, rank) is not None:
        return "Where chooses channel by channel"
    return _add(node, port, place)


def _scale(node: ir.Node, port: Port, place: Place) -> Said:
    """A product with what is the same for all channels."""
    rank = _sum_rank(node)
    at = _out_place(node, port, place, rank)
    if isinstance(at, str) or rank is None:
        return at if isinstance(at, str) else "the rank is not known"
    own = [aligned(v, at.axis, rank) if v is not None else None for v in node.inputs]
    for i in (0, 1) if node.op_type == "Mul" else (0,):
        axis, other = own[i], node.inputs[1 - i]
        if axis is not None and not edit.is_constant(node.inputs[i]) and (own[1 - i] is None or _uniform(other)):
            return {(IN, i): at.on(axis), (OUT, 0): at}
    if any(edit.is_constant(v) for v in node.inputs):
        return f"{node.op_type} scales each channel by a constant of its own"
    return f"{node.op_type} joins the channels of two computed values one by one"


def _uniform(value: ir.Value | None) -> bool:
    array = edit.constant(value)
    return array is not None and array.size > 0 and bool((array == array.reshape(-1)[0]).all())


def _transpose(node: ir.Node, port: Port, place: Place) -> Said:
    rank = _rank(node.outputs[0]) or 0
    perm = list(edit.attribute(node, "perm") or range(rank - 1, -1, -1))
    if port[0] == IN:
        return {(IN, 0): place, (OUT, 0): place.on(perm.index(place.axis))}
    return {(IN, 0): place.on(perm[place.axis]), (OUT, 0): place}


def _reshape(node: ir.Node, port: Port, place: Place) -> Said:
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    if port[0] == IN:
        out = reshaped(place, x, y)
        return out if isinstance(out, str) else {(IN, 0): place, (OUT, 0): out}
    back = reshaped(place, y, x)
    return back if isinstance(back, str) else {(IN, 0): back, (OUT, 0): place}


def _expand(node: ir.Node, port: Port, place: Place) -> Said:
    """Copies along other axes."""
    before, after = _rank(node.inputs[0]), _rank(node.outputs[0])
    if before is None or after is None:
        return "the rank is not known"
    ahead = after - before
    out = place if port[0] == OUT else place.on(place.axis + ahead)
    back = out.on(out.axis - ahead)
    if back.axis < 0 or size(node.inputs[0], back.axis) != size(node.outputs[0], out.axis):
        return "Expand copies one number to all channels"
    return {(IN, 0): back, (OUT, 0): out}


def _concat(node: ir.Node, port: Port, place: Place) -> Said:
    axis = int(edit.attribute(node, "axis")) % (_rank(node.outputs[0]) or 1)
    if axis == place.axis:
        return "Concat puts other channels beside these"
    return {(OUT, 0): place} | {(IN, i): place for i in range(len(node.inputs))}


def _split(node: ir.Node, port: Port, place: Place) -> Said:
    rank = _rank(node.inputs[0]) or 1
    if int(edit.attribute(node, "axis", 0)) % rank != place.axis:
        return {(IN, 0): place} | {(OUT, i): place for i in range(len(node.outputs))}
    sizes = [size(o, place.axis) for o in node.outputs]
    ends = np.cumsum([s or 0 for s in sizes]).tolist()
    if None in sizes:
        return "Split cuts the channels at an unknown place"
    whole = place if port == (IN, 0) else place.moved(ends[port[1]] - (sizes[port[1]] or 0))
    return _parts(whole, [(e - (s or 0), e) for s, e in zip(sizes, ends, strict=True)])


def _parts(whole: Place, bounds: list[tuple[int, int]]) -> Said:
    """Outputs that are parts of the axis of input 0: each holds whole runs."""
    ties: Ties = {(IN, 0): whole}
    for i, (low, high) in enumerate(bounds):
        start, stop = max(low, whole.start), min(high, whole.stop)
        if start >= stop:
            continue
        if (start - whole.start) % whole.extent or (stop - whole.start) % whole.extent:
            return "a part of the channels that mix is cut off"
        ties[OUT, i] = Place(whole.axis, whole.extent, start - low, stop - low)
    return ties


def _slice(node: ir.Node, port: Port, place: Place) -> Said:
    names = ("starts", "ends", "axes", "steps")
    starts, ends, axes, steps = (_ints(node, i, name) for i, name in enumerate(names, 1))
    rank, full = _rank(node.inputs[0]), size(node.inputs[0], place.axis)
    if rank is None or (axes is None and len(node.inputs) > 3 and node.inputs[3] is not None):
        return "Slice has computed axes"
    count = size(node.inputs[1], 0) if len(node.inputs) > 1 else len(starts or ())
    along = [a % rank for a in (axes if axes is not None else range(count or rank))]
    if place.axis not in along:
        return {(IN, 0): place, (OUT, 0): place}
    i = along.index(place.axis)
    if starts is None or ends is None or full is None or (steps is not None and steps[i] != 1):
        return "Slice picks single channels"
    low, high, _ = slice(starts[i], ends[i]).indices(full)
    return _parts(place if port[0] == IN else place.moved(low), [(low, high)])


def _ints(node: ir.Node, slot: int, name: str) -> list[int] | None:
    """The constant integers at an input, or those of the attribute it was before; None where there are none."""
    if slot < len(node.inputs) and node.inputs[slot] is not None:
        array = edit.constant(node.inputs[slot])
        return None if array is None else [int(v) for v in array.reshape(-1)]
    given = edit.attribute(node, name)
    return None if given is None else [int(v) for v in given]


def _gather(node: ir.Node, port: Port, place: Place) -> Said:
    """Rows of a table of embeddings, or entries along another axis."""
    data, indices = node.inputs[0], _rank(node.inputs[1])
    rank = _rank(data)
    if port == (IN, 1) or rank is None or indices is None:
        return "Gather reads the values as indices, or of unknown rank"
    along = int(edit.attribute(node, "axis", 0)) % rank
    if port[0] == IN:
        back = place
    elif along <= place.axis < along + indices:
        return "Gather makes the channels"
    else:
        back = place.on(place.axis if place.axis < along else place.axis - indices + 1)
    if back.axis == along:
        return "Gather picks single channels"
    if edit.is_constant(data):
        return End("writer", 0, back.axis)
    out = back.on(back.axis if back.axis < along else back.axis + indices - 1)
    return {(IN, 0): back, (OUT, 0): out}


def _reduce(node: ir.Node, port: Port, place: Place) -> Said:
    """Means and sums over other axes."""
    rank = _rank(node.inputs[0])
    axes = _ints(node, 1, "axes")
    if rank is None or axes is None:
        return f"{node.op_type} may reduce the channels"
    gone = sorted(a % rank for a in axes)
    keeps = bool(edit.attribute(node, "keepdims", 1))
    kept = [a for a in range(rank) if a not in gone]
    back = place if port[0] == IN or keeps else place.on(kept[place.axis])
    if back.axis in gone:
        return f"{node.op_type} reduces the channels"
    return {(IN, 0): back, (OUT, 0): back if keeps else back.on(kept.index(back.axis))}


def _pool(node: ir.Node, port: Port, place: Place) -> Said:
    return _same(node, port, place) if place.axis < 2 else f"{node.op_type} mixes neighbours along the channels"


def _matmul(node: ir.Node, port: Port, place: Place) -> Said:
    """The axis that is summed over ends in a weight, or meets itself; the others go on."""
    view = linear(node)
    if isinstance(view, Linear):
        return _weight(view, port, place)
    if node.op_type != "MatMul":
        return f"{node.op_type}: {view}"
    ranks = [_rank(v) for v in (*node.inputs, node.outputs[0])]
    if None in ranks or min(r or 0 for r in ranks) < 2:
        return "the ranks around its MatMul are not known, or it is by a vector"
    left, right, out = (r or 0 for r in ranks)
    summed = {(IN, 0): left - 1, (IN, 1): right - 2}
    for through in (summed, {(IN, 1): right - 1, (OUT, 0): out - 1}, {(IN, 0): left - 2, (OUT, 0): out - 2}):
        if through.get(port) == place.axis:
            return _through(node, through, place, "reader" if through is summed else "writer")
    return "the channels are a batch axis of its MatMul"


def _through(node: ir.Node, axes: dict[Port, int], place: Place, side: Literal["writer", "reader"]) -> Said:
    """The ties of a product, or the end at its constant operand (a stack of matrices)."""
    for (kind, slot), axis in axes.items():
        if kind == IN and edit.is_constant(node.inputs[slot]):
            return End(side, slot, axis)
    return {port: place.on(axis) for port, axis in axes.items()}


def _weight(view: Linear, port: Port, place: Place) -> Said:
    rank = _rank(value_at(view.node, port))
    channels = 1 if view.node.op_type == "Conv" else (rank or 0) - 1
    if rank is None or (port[0] == IN and port[1] != 0):
        return "a weight is computed from it"
    if view.groups != 1:
        return "a grouped convolution keeps its groups apart"
    if place.axis != channels:
        if view.node.op_type != "MatMul":
            return "a layer's rows or pixels are no channels"
        return {(IN, 0): place, (OUT, 0): place}
    if port[0] == IN:
        return End("reader", 1, 0 if view.transposed else 1)
    has_bias = view.node.op_type != "MatMul" and len(view.node.inputs) > 2 and view.node.inputs[2] is not None
    return End("writer", 1, 1 if view.transposed else 0, 2 if has_bias else None)


def _attention(node: ir.Node, port: Port, place: Place) -> Said:
    """q and k meet in one product, head by head; v goes through to the output. Caches leave the graph."""
    group = {(IN, 0): (0, 1), (IN, 1): (0, 1), (IN, 2): (2,), (OUT, 0): (2,)}.get(port)
    if group is None:
        return "it is a mask or a cache of an Attention"
    caches = [*node.inputs[4:6], *node.outputs[1:3]]
    if any(v is not None and (v.producer() is not node or v.uses() or v.is_graph_output()) for v in caches):
        return "the cache of its Attention is an input or output of its own"
    value = value_at(node, port)
    rank = _rank(value)
    if rank is None or place.axis != rank - 1 or value is None or not place.covers(value):
        return "only whole heads pass an Attention"
    ties: Ties = {}
    for other in [(IN, i) for i in group] + ([(OUT, 0)] if group == (2,) else []):
        full = size(value_at(node, other), rank - 1)
        if full is None or full % place.extent:
            return "the sizes of an Attention's heads are not known"
        ties[other] = Place(rank - 1, place.extent, 0, full)
    heads = edit.attribute(node, "kv_num_heads") if rank == 3 else 1
    width = size(node.inputs[group[-1]], rank - 1)
    if heads is None or width is None or (width // heads) % place.extent:
        return "the channels that mix are of more than one head of an Attention"
    return ties


_LET_PASS: dict[str, Rule] = dict.fromkeys(("Identity", "Neg", "Cast"), _same)
_RULES: dict[str, Rule] = (
    _LET_PASS
    | {"Dropout": _dropout, "Transpose": _transpose, "Expand": _expand, "Concat": _concat, "Split": _split}
    | dict.fromkeys(("Add", "Sub", "Sum"), _add)
    | dict.fromkeys(("Mul", "Div"), _scale)
    | dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape)
    | dict.fromkeys(("ReduceMean", "ReduceSum"), _reduce)
    | dict.fromkeys(("GlobalAveragePool", "AveragePool"), _pool)
    | dict.fromkeys(("MatMul", "Gemm", "Conv"), _matmul)
    | dict.fromkeys(("Shape", "Size"), _asks)
    | {"Where": _where, "Slice": _slice, "Gather": _gather, "Attention": _attention}
)
