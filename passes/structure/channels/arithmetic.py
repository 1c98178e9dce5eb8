"""Operators that compute: what becomes of the channels they read, and which they make.

A rule gets a node and what is known so far. It writes down what ties channels, holds them and changes along, and gives
the lanes of the outputs, or a reason why channels stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.graph.quantized import unquantized
from graphpress.passes.structure.channels.lanes import Lanes, along, dims, operand, ranked, size, varying
from graphpress.passes.structure.channels.moves import FACTOR, ORDER, READER, Move
from graphpress.passes.structure.channels.survey import Product, Survey
from graphpress.passes.structure.layers.linear import FLOATS, Linear, linear

Outs: TypeAlias = Sequence[Lanes | None] | str
Locate: TypeAlias = Callable[[Survey, ir.Node], Outs]


def same(found: Survey, node: ir.Node) -> Outs:
    """One channel in, the same out."""
    return [found.numbered(node).get(0)]


def cast(found: Survey, node: ir.Node) -> Outs:
    """Between floats."""
    floats = found.move in ORDER or edit.attribute(node, "to") in FLOATS
    return same(found, node) if floats else "Cast rounds the channels"


def dropout(found: Survey, node: ir.Node) -> Outs:
    """Outside training it does nothing."""
    flag = node.inputs[2] if len(node.inputs) > 2 else None
    training = np.array(False) if flag is None else edit.constant(flag)
    return "Dropout may be in training mode" if training is None or training.any() else same(found, node)


def asks(found: Survey, node: ir.Node) -> Outs:
    """Shape and Size read no channels."""
    return []


def joint(found: Survey, node: ir.Node) -> Lanes | str:
    """Lanes of what broadcasts the operands against one another."""
    shapes = [dims(v) for v in node.inputs if v is not None]
    if any(s is None for s in shapes):
        return "the shape of an operand is not known"
    rank = max(len(s) for s in shapes if s is not None)
    parts = [ranked(lanes, rank) for lanes in found.numbered(node).values()]
    for part in parts[1:]:
        found.join(parts[0], part)
    return np.broadcast_arrays(*parts)[0]


def share(found: Survey, node: ir.Node, but: Collection[int] = ()) -> Outs:
    """Operands hold the same channels at equal places; a constant changes along."""
    lanes, numbered = joint(found, node), found.numbered(node)
    if isinstance(lanes, str):
        return lanes
    for slot, value in enumerate(node.inputs):
        if value is None or slot in but:
            continue
        lacks = operand(lanes, value)[1]
        if edit.is_constant(value):
            found.keep(node, slot, lanes)
        elif lacks and found.move in ORDER:
            found.apart(lanes, [a for a in varying(lanes) if a not in lacks])
        elif lacks:
            return f"{node.op_type} adds the same computed number to all channels"
        elif slot not in numbered:
            found.hold_by(lanes, value)
    return [lanes]


def where(found: Survey, node: ir.Node) -> Outs:
    """A choice of whole runs is a sum."""
    if found.move in ORDER:
        return share(found, node)
    lanes, why = joint(found, node), "Where chooses channel by channel"
    if isinstance(lanes, str) or node.inputs[0] is None or 0 in found.numbered(node):
        return lanes if isinstance(lanes, str) else why
    return share(found, node, but=(0,)) if _even(found, node, lanes, 0, why) else why


def _even(found: Survey, node: ir.Node, lanes: Lanes, slot: int, why: str) -> bool:
    """Whether an operand is one number for all channels, or (rotations) for each run."""
    value = node.inputs[slot]
    lacks = operand(lanes, value)[1] if value is not None else varying(lanes)
    if lacks != varying(lanes) and found.move is Move.ROTATE:
        found.apart(lanes, [a for a in range(lanes.ndim) if a not in lacks], node, why)
        return bool(lacks)
    return lacks == varying(lanes)


def product(found: Survey, node: ir.Node) -> Outs:
    """An order of both operands; a factor of one; a turn beside what is the same for all channels."""
    if found.move in ORDER:
        return share(found, node) if found.numbered(node) else []
    slots = (0, 1) if node.op_type == "Mul" else (0,)
    rank = max(len(dims(v) or ()) for v in node.inputs if v is not None)
    numbered = {i: ranked(lanes, rank) for i, lanes in found.numbered(node).items()}
    return (_factor if found.move in FACTOR else _turned)(found, node, slots, numbered)


def _turned(found: Survey, node: ir.Node, slots: Sequence[int], numbered: dict[int, Lanes]) -> Outs:
    op, constants = node.op_type, [edit.constant(v) for v in node.inputs]
    why = f"{op} joins the channels of two computed values one by one"
    if any(c is not None for c in constants):
        why = f"{op} scales each channel by a constant of its own"
    for slot in (s for s in slots if s in numbered):
        other = constants[1 - slot]
        uniform = other is not None and other.size > 0 and bool((other == other.reshape(-1)[0]).all())
        if uniform or _even(found, node, numbered[slot], 1 - slot, why):
            for beside in numbered.keys() - {slot}:
                found.hold(numbered[beside], node, why)
            return [numbered[slot]]
    return why if numbered else []


def _factor(found: Survey, node: ir.Node, slots: Sequence[int], numbered: dict[int, Lanes]) -> Outs:
    fixed = {i: t.shape for i in slots if (t := edit.constant_tensor(node.inputs[i])) is not None}
    twice = node.inputs[0] is node.inputs[1]
    shapes = [tuple(numbered[i].shape if i in numbered else fixed[i]) for i in slots if i in numbered or i in fixed]
    rank = max(len(dims(v) or ()) for v in node.inputs if v is not None)
    lanes = found.fresh(np.broadcast_shapes((1,) * rank, *shapes))
    order = [*fixed, *(i for i in reversed(slots) if i in numbered and not twice)]
    values = [(i, v) for i in order if (v := node.inputs[i]) is not None]
    ways = {i: lanes if i in fixed else numbered[i] for i, v in values if not operand(lanes, v)[1]}
    why = f"{node.op_type} multiplies the channels with themselves, or divides by them"
    if not ways:
        return why if numbered else []
    for slot in numbered.keys() - ways.keys():
        found.hold(numbered[slot], node, why)
    if len(ways) > 1:
        found.products.append(Product(node, lanes, ways))
        return [lanes]
    ((slot, way),) = ways.items()
    if slot in fixed and lanes.size > 1:
        found.keep(node, slot, way)
    return [way]


def slope(found: Survey, node: ir.Node) -> Outs:
    """PRelu with a constant slope."""
    if found.move in ORDER:
        return share(found, node)
    fixed = edit.is_constant(node.inputs[1]) and 1 not in found.numbered(node)
    return same(found, node) if fixed else "the slope of PRelu is computed"


def layer(found: Survey, node: ir.Node) -> Outs:
    """MatMul, Gemm, Conv: what is summed over (k) meets itself; rows (i) and columns (j) go on, or are made."""
    view, names = linear(node), _axes(node)
    if names is None or (isinstance(view, str) and node.op_type != "MatMul"):
        return view if isinstance(view, str) and names is not None else "the ranks around it are not known"
    if not isinstance(view, str) and view.groups != 1:
        return _grouped(found, view, names)
    gone: list[Lanes] = []
    for slot, lanes in found.numbered(node).items():
        on, beside = "".join(names[slot][a] for a in varying(lanes)), names[1 - slot]
        if on == "k":
            _meet(found, node, 1 - slot, _placed(lanes, names[slot], beside), computed=isinstance(view, str))
        elif node.op_type == "MatMul" and "k" not in on and (set(on) & set("ij") or not set(on) & set(beside)):
            found.apart(lanes, [a for a in varying(lanes) if names[slot][a] in beside])
            gone.append(_placed(lanes, names[slot], names[-1]))
        else:
            found.hold(lanes, node, "its rows, pixels or batches are no channels: they stand along another axis")
    for lanes in gone[1:]:
        found.join(gone[0], lanes)
    return [np.broadcast_arrays(*gone)[0] if gone else _made(found, node, names)]


def _axes(node: ir.Node) -> list[str] | None:
    """A letter for each axis of the operands and the output: those of one letter run together, digits alone."""
    shapes = [dims(v) for v in node.inputs]
    if any(s is None for s in shapes[:2]):
        return None
    one, other, bias = ([*s] if s is not None else [] for s in (*shapes, None)[:3])
    if node.op_type == "Conv":
        return ["nkabcde"[: len(one)], "jkxyzuv"[: len(other)], "j", "njabcde"[: len(one)]]
    if node.op_type == "Gemm":
        return ["ik", "jk" if edit.attribute(node, "transB", 0) else "kj", "ij"[2 - len(bias) :], "ij"]
    batch = "ABCDEFGH"[: max(len(one), len(other)) - 2]
    texts = [(batch + "ik")[-len(one) :], (batch + "kj")[-len(other) :]] if one and len(other) > 1 else []
    texts = [
        "".join(str(slot) if d == 1 and n.isupper() else n for n, d in zip(text, shape, strict=True))
        for slot, (text, shape) in enumerate(zip(texts, (one, other), strict=False))
    ]
    return [*texts, batch + "ij"[len(one) == 1 :]] if texts else None


def _placed(lanes: Lanes, names: str, wanted: str) -> Lanes:
    """Lanes over axes of these letters as those over other ones."""
    kept = [names.index(n) for n in wanted if n in names]
    order = [*kept, *(a for a in range(lanes.ndim) if a not in kept)]
    return lanes.transpose(order).reshape([lanes.shape[names.index(n)] if n in names else 1 for n in wanted])


def _meet(found: Survey, node: ir.Node, slot: int, lanes: Lanes, *, computed: bool) -> None:
    """Channels that an operand meets where a product sums: of a layer's weight they are columns."""
    value = node.inputs[slot]
    assert value is not None
    if computed and found.move is not Move.ROTATE:
        found.hold(lanes, node, "it multiplies computed channels")
    elif not computed or (edit.is_constant(value) and not operand(lanes, value)[1]):
        found.keep(node, slot, lanes, READER)
    elif slot in found.numbered(node):
        found.join(lanes, found.lanes[value])
    else:
        found.hold_by(lanes, value)


def _made(found: Survey, node: ir.Node, names: list[str], lanes: Lanes | None = None) -> Lanes | None:
    """The columns that a constant makes: new channels, or these."""
    out, value = node.outputs[0], node.inputs[1]
    tensor = edit.constant_tensor(unquantized(value))
    batched = tensor is not None and len(tensor.shape) > 2 and node.op_type == "MatMul" and found.move in ORDER
    if tensor is None or tensor.dtype not in FLOATS or batched or not out.uses() or not dims(out):
        return None
    if lanes is None:
        lanes = _placed(found.fresh([int(tensor.shape.numpy()[names[1].index("j")])]), "j", names[-1])
    if lanes.size > 1:
        for slot in range(1, len(node.inputs)):
            if node.inputs[slot] is not None:
                found.keep(node, slot, _placed(lanes, names[-1], names[slot]))
    return lanes


def _grouped(found: Survey, view: Linear, names: list[str]) -> Outs:
    """A depthwise convolution keeps each channel to itself."""
    node, lanes = view.node, found.numbered(view.node).get(0)
    why = f"a grouped convolution keeps its groups apart: it reads them in {view.groups} groups"
    if found.move in (Move.ROTATE, Move.SLICE):
        return why
    made = np.repeat(lanes, view.shape[0] // view.groups, axis=1) if lanes is not None else None
    if lanes is not None and (view.shape[1] != 1 or varying(lanes) != [1]):
        found.hold(lanes, node, why)
    elif made is not None and found.move in ORDER:
        return [_made(found, node, names, made)]
    elif made is not None:
        found.keep(node, 1, _placed(made, names[-1], names[1]), READER)
    new = _made(found, node, names)
    if new is not None:
        found.apart(new.reshape(view.groups, -1), [0])
    return [new]


def attention(found: Survey, node: ir.Node) -> Outs:
    """q and k meet in one product, head by head; v goes through to the output. Caches leave the graph."""
    caches = [*node.inputs[4:6], *node.outputs[1:3]]
    if any(v is not None and (v.producer() is not node or v.uses() or v.is_graph_output()) for v in caches):
        return "the cache of its Attention is an input or output of its own: it keeps keys and values"
    counts, heads = _head_counts(node), {}
    for slot, lanes in found.numbered(node).items():
        made, why = _by_head(lanes, counts, slot), "its values are not laid out as batch, heads, tokens, channels"
        if slot > 2 or (slot < 2 and found.move is not Move.ROTATE):
            made, why = None, "it compares queries and keys by their place, or masks them"
        if made is None:
            found.hold(lanes, node, why)
        else:
            heads[slot] = made
            found.apart(made, [0, 1, 2], node, "the channels that mix are of more than one head of an Attention")
    if 0 in heads and 1 in heads:
        found.join(heads[0], heads[1])
    for slot in (0, 1):
        if slot in heads and 1 - slot not in heads and (other := node.inputs[1 - slot]) is not None:
            found.hold_by(heads[slot], other)
    out = heads.get(2)
    if out is not None and len(dims(node.inputs[0]) or ()) == 3:
        out = np.broadcast_to(out, (1, counts[0] or 1, 1, out.shape[3])).transpose(0, 2, 1, 3).reshape(1, 1, -1)
    return [out]


def _head_counts(node: ir.Node) -> tuple[int | None, int | None]:
    """Heads of the queries, and of keys and values."""
    shapes = [dims(v) or [] for v in node.inputs[:2]]
    if len(shapes[0]) == 3:
        return edit.attribute(node, "q_num_heads"), edit.attribute(node, "kv_num_heads")
    query, key = (s[1] if len(s) == 4 else None for s in shapes)
    return query if isinstance(query, int) else None, key if isinstance(key, int) else None


def _by_head(lanes: Lanes, counts: tuple[int | None, int | None], slot: int) -> Lanes | None:
    """[1, query heads, 1, channels]: shared heads stand for each that reads them. None in other layouts."""
    query, own = counts[0], counts[slot in (1, 2)]
    if lanes.ndim == 3 and own and not lanes.size % own:
        lanes = lanes.reshape(1, 1, own, -1).transpose(0, 2, 1, 3)
    if lanes.ndim != 4 or varying(lanes) not in ([1, 3], [3]) or (lanes.shape[1] > 1 and None in counts):
        return None
    return np.repeat(lanes, (query or 1) // (own or 1), axis=1) if lanes.shape[1] > 1 else lanes


def norm(found: Survey, node: ir.Node) -> Outs:
    """LayerNormalization, RMSNormalization: an order passes; a factor is taken up by the gain (and the bias)."""
    lanes, rank = found.numbered(node).get(0), len(dims(node.inputs[0]) or ())
    params = [i for i, v in enumerate(node.inputs) if i and v is not None]
    if not rank or not all(edit.is_constant(node.inputs[i]) for i in params):
        return f"the gain or bias of {node.name!r} is computed"
    if found.move in FACTOR:
        if lanes is not None:
            found.hold(lanes, node, f"{node.op_type} normalizes over its channels")
        gain = edit.constant_tensor(node.inputs[1]) if params else None
        if gain is None or 1 in gain.shape or len(gain.shape) not in range(1, rank + 1):
            return f"{node.name!r} has no gain, or not one constant for each channel"
        lanes = ranked(found.fresh(gain.shape.numpy()), rank)
    if lanes is not None:
        start = int(edit.attribute(node, "axis", -1)) % rank
        found.apart(lanes, [a for a in varying(lanes) if a < start])
        for slot in params:
            found.keep(node, slot, lanes)
    return [lanes]


def statistics(found: Survey, node: ir.Node) -> Outs:
    """BatchNormalization and InstanceNormalization: constants for each channel; a factor is taken up by two of them."""
    lanes, rank, count = found.numbered(node).get(0), len(dims(node.inputs[0]) or ()), size(node.inputs[1], 0)
    computed = not all(edit.is_constant(v) for v in node.inputs[1:])
    if computed or not rank or count is None or (lanes is not None and varying(lanes) != [1]):
        return "its statistics are computed, or are of another axis"
    if found.move in FACTOR:
        if lanes is not None:
            found.hold(lanes, node, "its statistics are those of the channels as they are")
        lanes = along(found.fresh([count]), 1, rank)
    if lanes is not None:
        for slot in range(1, len(node.inputs) if found.move in ORDER else 3):
            found.keep(node, slot, lanes.reshape(-1))
    return [lanes]


def recurrent(found: Survey, node: ir.Node) -> Outs:
    """LSTM, GRU, RNN: the columns of the input weights take a factor up; states stay as they are, and start anew."""
    for slot, lanes in found.numbered(node).items():
        if slot == 0 and lanes.ndim == 3 and varying(lanes) == [2] and edit.is_constant(node.inputs[1]):
            found.keep(node, 1, lanes, READER)
        else:
            found.hold(lanes, node, f"{node.op_type} computes with its states and weights as they are")
    return []


def summed_along(found: Survey, node: ir.Node) -> Outs:
    """Softmax and the like: any order within what is summed."""
    lanes, graph = found.numbered(node)[0], node.graph
    version = graph.opset_imports.get("", 1) if isinstance(graph, ir.Graph) else 1
    if version < 13 and node.op_type != "LpNormalization":
        return "before opset 13 it runs along several axes"
    axis = int(edit.attribute(node, "axis", -1)) % lanes.ndim
    if axis in varying(lanes):
        found.apart(lanes, [a for a in varying(lanes) if a != axis])
    return [lanes]


def reduce(found: Survey, node: ir.Node) -> Outs:
    """Over other axes; over all of the channels it gives the same in any order."""
    lanes, given = found.numbered(node).get(0), len(node.inputs) > 1 and node.inputs[1] is not None
    axes = edit.constant(node.inputs[1]) if given else edit.attribute(node, "axes")
    if lanes is None or (axes is None and given):
        return f"{node.op_type} may reduce the channels"
    gone = {int(a) % lanes.ndim for a in (range(lanes.ndim) if axes is None else np.ravel(axes))}
    if over := [a for a in varying(lanes) if a in gone]:
        free = found.move is Move.PERMUTE and over == varying(lanes)
        return [] if free else f"{node.op_type} reduces the channels, or a part of them"
    return [lanes if edit.attribute(node, "keepdims", 1) else lanes.squeeze(tuple(gone))]


def pool(found: Survey, node: ir.Node) -> Outs:
    """Pools and Resize, in space only."""
    lanes, before, after = found.numbered(node).get(0), dims(node.inputs[0]), dims(node.outputs[0])
    if lanes is None or varying(lanes) != [1] or before is None or after is None or before[1] != after[1]:
        return f"{node.op_type} mixes neighbours along the channels"
    if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        return "its indices are read"
    return [lanes]
