"""One form for what torch's exporter writes in several: so that a module made of a graph gives the same graph again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit


def tidy(model: ir.Model) -> None:
    """Rewrite operands in place; what is computed stays the same."""
    edit.index(model)
    for graph in edit.graphs(model):
        for node in list(graph):
            rule = None if node.domain else _RULES.get(node.op_type)
            if rule is not None and (node.op_type != "Split" or edit.opset(model) >= 18):
                rule(graph, node)


def _slice(graph: edit.Scope, node: ir.Node) -> None:
    """No steps where all are 1; nothing where it takes everything, or one of several that were joined before."""
    if len(node.inputs) == 5 and _all(node, 4, 1):
        node.resize_inputs(4)
    bounds = [_constant(node, slot) for slot in (1, 2, 3)]
    if len(node.inputs) != 4 or any(b is None or len(b) != 1 for b in bounds):
        return
    start, end, axis = (int(b[0]) for b in bounds if b is not None)
    x = node.inputs[0]
    size = _size(x, axis)
    if size is not None and start == 0 and end >= size:
        _forward(graph, node, x)
    maker = x.producer() if x is not None else None
    if maker is None or maker.domain or maker.op_type != "Concat" or edit.attribute(maker, "axis") != axis:
        return
    place: int | None = 0
    for part in maker.inputs:
        size = _size(part, axis)
        if place is None or size is None:
            return
        if (start, end) == (place, place + size):
            _forward(graph, node, part)
            return
        place += size


def _size(value: ir.Value | None, axis: int) -> int | None:
    """Of one axis, where it is known: from the shape, or since an Unsqueeze made it."""
    maker = value.producer() if value is not None else None
    if maker is not None and maker.op_type == "Unsqueeze" and not maker.domain and _all(maker, 1, axis):
        return 1
    size = value.shape[axis] if value is not None and value.shape is not None else None
    return size if isinstance(size, int) else None


def _concat(graph: edit.Scope, node: ir.Node) -> None:
    """Nothing where it joins one."""
    if len(node.inputs) == 1:
        _forward(graph, node, node.inputs[0])


def _forward(graph: edit.Scope, node: ir.Node, value: ir.Value | None) -> None:
    """Let the readers of a node read ``value``; a graph's output stays as it is."""
    if value is not None and not node.outputs[0].is_graph_output():
        node.outputs[0].replace_all_uses_with(value)
        graph.remove(node, safe=True)


def _pad(graph: edit.Scope, node: ir.Node) -> None:
    """No value where it is 0."""
    if len(node.inputs) == 3 and _all(node, 2, 0):
        node.resize_inputs(2)


def _squeeze(graph: edit.Scope, node: ir.Node) -> None:
    """Axes from the front; nothing where an Unsqueeze made them."""
    x, axes = node.inputs[0], _constant(node, 1)
    if x is None or axes is None:
        return
    maker = x.producer()
    made = None if maker is None or maker.op_type != "Unsqueeze" or maker.domain else _constant(maker, 1)
    rank = len(x.shape) if x.shape is not None else None
    wanted = _from_front(axes, rank)
    if maker is not None and made is not None and np.array_equal(_from_front(made, rank), wanted):
        _forward(graph, node, maker.inputs[0])
    elif not np.array_equal(axes, wanted):
        _set(graph, node, 1, wanted)


def _from_front(axes: np.ndarray, rank: int | None) -> np.ndarray:
    """In order; as they are where the rank is not known."""
    return axes if rank is None else np.sort(axes % rank)


def _split(graph: edit.Scope, node: ir.Node) -> None:
    """A number of parts where all have one size."""
    sizes = _constant(node, 1)
    if sizes is not None and len(set(sizes.tolist())) == 1:
        node.resize_inputs(1)
        node.attributes.add(ir.AttrInt64("num_outputs", len(sizes)))


def _expand(graph: edit.Scope, node: ir.Node) -> None:
    """1 where the size is the input's own; nothing where all are."""
    x, wanted = node.inputs[0], _constant(node, 1)
    if x is None or x.shape is None or wanted is None:
        return
    own: list[object] = [None] * (len(wanted) - len(x.shape)) + list(x.shape)
    if len(own) != len(wanted):
        return
    short = np.array([1 if a == b else b for a, b in zip(own, wanted.tolist(), strict=True)], np.int64)
    if (short == 1).all() and len(short) == len(x.shape):
        _forward(graph, node, x)
    elif not np.array_equal(short, wanted):
        _set(graph, node, 1, short)


def _reshape(graph: edit.Scope, node: ir.Node) -> None:
    """No word on what 0 means where there is none."""
    shape = _constant(node, 1)
    if shape is not None and shape.all():
        node.attributes.pop("allowzero", None)


def _where(graph: edit.Scope, node: ir.Node) -> None:
    """Truth values are chosen by And and Or: ONNX Runtime has no kernel for it."""
    when, yes, no = node.inputs
    if when is None or yes is None or no is None or ir.DataType.BOOL not in (yes.dtype, no.dtype):
        return
    first = _logic("And", [when, yes], node)
    second = _logic("And", [_logic("Not", [when], node), no], node)
    edit.replace(node.outputs[0], by=edit.like(_logic("Or", [first, second], node), node.outputs[0]))
    graph.remove(node, safe=True)


def _add(graph: edit.Scope, node: ir.Node) -> None:
    """A sum of truth values, of which ONNX has none, is their Or."""
    if [v.dtype for v in node.inputs if v is not None] == [ir.DataType.BOOL] * 2:
        made = _logic("Or", list(node.inputs), node)
        edit.replace(node.outputs[0], by=edit.like(made, node.outputs[0], ir.DataType.BOOL))
        graph.remove(node, safe=True)


def _logic(op_type: str, operands: list[ir.Value | None], before: ir.Node) -> ir.Value:
    value = edit.new_node(op_type, operands, before=before).outputs[0]
    value.type = ir.TensorType(ir.DataType.BOOL)
    return value


def _batch_norm(graph: edit.Scope, node: ir.Node) -> None:
    """No momentum where nothing is learned."""
    if not edit.attribute(node, "training_mode", 0):
        node.attributes.pop("momentum", None)


def _constant(node: ir.Node, slot: int) -> np.ndarray | None:
    return edit.constant(node.inputs[slot]) if slot < len(node.inputs) else None


def _all(node: ir.Node, slot: int, number: int) -> bool:
    array = _constant(node, slot)
    return array is not None and bool((array == number).all())


def _set(graph: edit.Scope, node: ir.Node, slot: int, array: np.ndarray) -> None:
    before = node.inputs[slot]
    if isinstance(graph, ir.Graph) and before is not None:
        edit.set_input(node, slot, edit.add_const(graph, array, before.name or node.op_type))


_RULES: dict[str, Callable[[edit.Scope, ir.Node], None]] = {
    "Slice": _slice, "Concat": _concat, "Pad": _pad, "Squeeze": _squeeze, "Split": _split, "Expand": _expand,
    "Reshape": _reshape, "BatchNormalization": _batch_norm, "Where": _where, "Add": _add,
}  # fmt: skip
