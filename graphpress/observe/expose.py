"""Where the values to observe can be seen: fed, constant, in the main graph, or lifted out of the branches of an If."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from graphpress.errors import StaleSite, nearest
from graphpress.graph import edit

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
_Path: TypeAlias = tuple[tuple[ir.Node, ir.Graph], ...]  # the Ifs around a value and the branches, outermost first


@dataclass
class Exposed:
    """Where each value is found. Names on the left are the caller's.

    Attributes:
        outputs: Name of the main graph's value that carries it.
        inputs: Those that are fed.
        constants: Those that never change.
        unobserved: Those that cannot be seen, with the reason.
    """

    outputs: dict[str, str] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    unobserved: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Place:
    value: ir.Value
    path: _Path
    hidden: str  # why it cannot be lifted out, or ''
    function: bool  # whether it is inside one: its name is none of the main graph then


def expose(model: ir.Model, names: Collection[str], *, floats: bool = True) -> Exposed:
    """Find values by name, and give the Ifs of ``model`` an output for each that lives in one of their branches.

    The other branch then yields an empty tensor of the same type. Bodies of Loop and Scan and functions run many times
    a sample or at many places: their values are not observed.

    Args:
        model: Changed in place: a clone.
        names: Values of any graph of the model.
        floats: Whether values of other types are left out.

    Raises:
        StaleSite: The model has no such value.
    """
    edit.index(model)  # a clone does not know yet which graphs belong together
    places: dict[str, list[_Place]] = {name: [] for name in names}
    known: set[str] = set()
    for place in _places(model):
        known.add(place.value.name or "")
        if place.value.name in places:
            places[place.value.name].append(place)
    result = Exposed()
    for name, found in places.items():
        if not found:
            raise StaleSite("the model has no such value", where=f"value {name!r}", fix=nearest(name, known))
        _file(model, name, [p for p in found if not p.function] or found, result, floats)
    return result


def _places(model: ir.Model) -> Iterator[_Place]:
    yield from _within(model.graph, (), "", False)
    for function in model.functions.values():
        yield from _within(function, (), f"it is inside the function {function.domain}::{function.name}", True)


def _within(graph: edit.Scope, path: _Path, hidden: str, function: bool) -> Iterator[_Place]:
    initializers = graph.initializers.values() if isinstance(graph, ir.Graph) else ()
    for value in dict.fromkeys((*graph.inputs, *initializers)):
        yield _Place(value, path, hidden, function)
    for node in graph:
        for value in node.outputs:
            yield _Place(value, path, hidden, function)
        repeats = "" if node.op_type == "If" else f"it is in the body of {node.op_type} {node.name!r}, which repeats"
        for body in edit.subgraphs(node):
            yield from _within(body, (*path, (node, body)), hidden or repeats, function)


def _file(model: ir.Model, name: str, found: list[_Place], result: Exposed, floats: bool) -> None:
    place = found[0]
    constant = edit.constant(place.value)
    dtype = place.value.dtype
    if dtype is None and constant is None and not place.hidden and (floats or place.path):
        _infer_types(model)
        dtype = place.value.dtype
    if len(found) > 1:
        result.unobserved[name] = "several values of the model have this name"
    elif floats and dtype is not None and dtype not in _FLOATS:
        result.unobserved[name] = f"its type is {dtype.name}"
    elif constant is not None:
        result.constants[name] = constant
    elif place.hidden:
        result.unobserved[name] = place.hidden
    elif place.value.is_graph_input():
        result.inputs.append(name)
    elif place.path and dtype is None:
        result.unobserved[name] = "its type is unknown"
    else:
        result.outputs[name] = _lift(place).name or ""


def _infer_types(model: ir.Model) -> None:
    from onnx_ir.passes.common import ShapeInferencePass

    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)


def _lift(place: _Place) -> ir.Value:
    """The value of the main graph that carries this one."""
    value = place.value
    for node, body in reversed(place.path):
        producer = value.producer()
        assert producer is not None, "what an If's branch has no node for is constant"
        # An Identity, because the value may be an output of the branch already.
        carried = edit.new_node("Identity", [value], after=producer).outputs[0]
        body.outputs.append(edit.like(carried, value))
        for other in edit.subgraphs(node):
            if other is not body:
                other.outputs.append(_nothing(other, value))
        node.resize_outputs(len(node.outputs) + 1)
        outer = node.outputs[-1]
        assert node.graph is not None
        outer.name = edit.fresh_name(node.graph, f"{value.name}_outside")
        outer.type = value.type
        value = outer
    return value


def _nothing(graph: ir.Graph, like: ir.Value) -> ir.Value:
    assert like.dtype is not None
    empty = ir.tensor(np.empty(0, like.dtype.numpy()))
    node = ir.node("Constant", [], {"value": empty}, name=edit.fresh_name(graph, "nothing"))
    value = node.outputs[0]
    value.name = edit.fresh_name(graph, "nothing_out")
    value.type, value.shape = ir.TensorType(like.dtype), ir.Shape([0])
    graph.append(node)
    return value
