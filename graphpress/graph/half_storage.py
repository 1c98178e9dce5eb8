"""Float weights of a model that came in half precision: stored as halves behind a Cast, and taken back from there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit, half, quantized, widening
from graphpress.keys import HALF, NARROW

_LEAST = 64  # elements: below, the node costs what the numbers save


def store(model: ir.Model) -> int:
    """Store float32 weights of a model that was in half precision (``widening.widen``) as halves again, in place.

    A weight keeps its name; a Cast, which runtimes compute once at load, gives the float32 that nodes read. Where all
    weights were halves, what passes have made of them is rounded to half as well, to float16 where its range allows;
    where only some were, those, and whatever is a half already. Scales of Q/DQ stay, and what half precision cannot
    hold.

    Returns:
        How many weights are stored so.
    """
    whole = HALF.get(model)
    known = {t for _, v in _weights(model) if (t := HALF.get(v))} | ({whole} if whole else set())
    count = 0
    for graph, value in list(_weights(model)) if known else ():
        array = value.const_value.numpy() if value.const_value is not None and _fits(value) else None
        rounding = (HALF.get(value) or whole) is not None
        if array is not None and (found := _stored(array, known, rounding=rounding)) is not None:
            _put(graph, value, found)
            count += 1
    _forget(model)
    return count


def count_stored(model: ir.Model) -> int:
    """How many weights ``store`` has put behind a Cast."""
    return sum(NARROW in v.metadata_props for _, v in _weights(model))


def saved(model: ir.Model) -> int:
    """Bytes that ``store`` will save, as far as marks tell without a look at the numbers."""
    whole = HALF.get(model)
    marked = (v for _, v in _weights(model) if (HALF.get(v) or whole) and _fits(v))
    return sum(v.const_value.nbytes // 2 for v in marked if v.const_value is not None)


def _weights(model: ir.Model) -> Iterator[tuple[ir.Graph, ir.Value]]:
    for scope in edit.graphs(model):
        if isinstance(scope, ir.Graph):
            yield from ((scope, value) for value in list(scope.initializers.values()))


def _fits(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < _LEAST or not value.uses():
        return False
    return not (value.is_graph_input() or value.is_graph_output() or quantized.holds_scale(value))


def _stored(array: np.ndarray, kinds: set[ir.DataType], *, rounding: bool) -> np.ndarray | None:
    """In the type that holds it exactly, else rounded to the one with more digits that reaches so far."""
    candidates = [half.narrow(array, kind) for kind in half.HALVES]
    for kind, found in zip(half.HALVES, candidates, strict=True):
        if kind in kinds and found is not None and np.array_equal(found.astype(np.float32), array, equal_nan=True):
            return found
    return next((found for found in candidates if found is not None), None) if rounding else None


def _put(graph: ir.Graph, value: ir.Value, array: np.ndarray) -> None:
    """Let ``array`` stand under the name of ``value``, and a Cast of it for its readers."""
    name, wide = value.name or "", value.dtype
    narrow = edit.add_const(graph, array, f"{name}_half")
    first = next(iter(graph))
    made = edit.new_node("Cast", [narrow], {"to": int(ir.DataType.FLOAT)}, before=first, name=f"{name}_Cast").outputs[0]
    edit.like(made, value, wide)
    for user, slot in list(value.uses()):
        user.replace_input_with(slot, made)
    graph.initializers.pop(name)
    narrow.metadata_props.update(value.metadata_props)
    narrow.metadata_props[NARROW] = "Cast"
    narrow.name = name


def _forget(model: ir.Model) -> None:
    model.metadata_props.pop(HALF, None)
    for _, value in _weights(model):
        value.metadata_props.pop(HALF, None)


def taken_back(model: ir.Model) -> ir.Model:
    """A copy whose stored halves are float32 initializers again, under their names; a model without them itself."""
    if not count_stored(model):
        return model
    copy = model.clone()
    edit.index(copy)
    for _, value in _weights(copy):
        if value.metadata_props.pop(NARROW, None) and (cast := _cast_of(value)) is not None:
            widening.widen_weight(value)
            edit.replace(cast.outputs[0], value)
            edit.remove([cast])
    return copy


def _cast_of(value: ir.Value) -> ir.Node | None:
    """The only node that reads a weight, if it is a Cast to float32."""
    users = [u.node for u in value.uses()]
    if len(users) != 1 or users[0].op_type != "Cast" or users[0].outputs[0].is_graph_output():
        return None
    return users[0] if users[0].attributes.get_int("to", 0) == ir.DataType.FLOAT else None


def behind(value: ir.Value | None) -> ir.Value | None:
    """The constant in half precision that a Cast makes ``value`` of; else ``value`` itself."""
    node = value.producer() if value is not None else None
    source = node.inputs[0] if node is not None and node.op_type == "Cast" and not node.domain else None
    return source if source is not None and source.dtype in half.HALVES and edit.is_constant(source) else value
