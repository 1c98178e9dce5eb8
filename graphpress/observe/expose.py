"""Where values can be seen: fed, constant, in the main graph, or lifted out of bodies of control flow."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from graphpress.errors import StaleSite, nearest
from graphpress.graph import edit

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
_Path: TypeAlias = tuple[tuple[ir.Node, ir.Graph], ...]  # the nodes around a value and their bodies, outermost first
_REPEATING = ("Loop", "Scan")


@dataclass
class Exposed:
    """Where each value is found. Names on the left are the caller's.

    Attributes:
        outputs: Name of the main graph's value that carries it.
        inputs: Those that are fed.
        constants: Those that never change.
        unobserved: Those that cannot be seen, with the reason.
        stacked: Of a value in bodies that repeat, how many of them: so many axes, of their iterations, come first.
    """

    outputs: dict[str, str] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    unobserved: dict[str, str] = field(default_factory=dict)
    stacked: dict[str, int] = field(default_factory=dict)

    def seen(self, name: str, array: np.ndarray) -> np.ndarray:
        """What came out for a value; iterations join its first axis, or become the first of one that has no other."""
        axes = self.stacked.get(name, 0)
        if not axes:
            return array
        kept = axes + (array.ndim > axes + 1)
        return array.reshape(math.prod(array.shape[:kept]), *array.shape[kept:])


@dataclass(frozen=True)
class _Place:
    value: ir.Value
    path: _Path
    hidden: str  # why it cannot be lifted out, or ''
    function: bool  # whether it is inside one: its name is none of the main graph then


def expose(model: ir.Model, names: Collection[str], *, floats: bool = True, stack: Collection[str] = ()) -> Exposed:
    """Find values by name, and give an output to the nodes in whose bodies they live.

    The other branch of an If then yields an empty tensor of the same type; a Loop or Scan stacks what its iterations
    give, which wants one shape of all. Functions run at many places: their values are not observed.

    Args:
        model: Changed in place: a clone.
        names: Values of any graph of the model.
        floats: Whether values of other types are left out.
        stack: Those that may be lifted out of a Loop or Scan; others there are not observed.

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
        _file(model, name, [p for p in found if not p.function] or found, result, floats, name in stack)
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
        for body in edit.subgraphs(node):
            yield from _within(body, (*path, (node, body)), hidden, function)


def _hidden(place: _Place, stack: bool, opset: int) -> str:
    """Why a value cannot be lifted out, or ''."""
    around = [node for node, _ in place.path]
    loops = [node for node in around if node.op_type in _REPEATING]
    if place.hidden or not loops:
        return place.hidden
    if not stack or (opset < 9 and any(node.op_type == "Scan" for node in loops)):
        return f"it is in the body of {loops[-1].op_type} {loops[-1].name!r}, which repeats"
    if any(node.op_type == "If" for node in around[around.index(loops[0]) :]):
        return f"it is in a branch that not every iteration of {loops[0].op_type} {loops[0].name!r} takes"
    return ""


def _file(model: ir.Model, name: str, found: list[_Place], result: Exposed, floats: bool, stack: bool) -> None:
    place, hidden = found[0], _hidden(found[0], stack, edit.opset(model))
    constant = edit.constant(place.value)
    dtype = place.value.dtype
    if dtype is None and constant is None and not hidden and (floats or place.path):
        _infer_types(model)
        dtype = place.value.dtype
    if len(found) > 1:
        result.unobserved[name] = "several values of the model have this name"
    elif floats and dtype is not None and dtype not in _FLOATS:
        result.unobserved[name] = f"its type is {dtype.name}"
    elif constant is not None:
        result.constants[name] = constant
    elif hidden:
        result.unobserved[name] = hidden
    elif place.value.is_graph_input() and not place.path:
        result.inputs.append(name)
    elif place.path and dtype is None:
        result.unobserved[name] = "its type is unknown"
    else:
        result.outputs[name] = _lift(place).name or ""
        if loops := sum(node.op_type in _REPEATING for node, _ in place.path):
            result.stacked[name] = loops


def _infer_types(model: ir.Model) -> None:
    from onnx_ir.passes.common import ShapeInferencePass

    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)


def _lift(place: _Place) -> ir.Value:
    """The value of the main graph that carries this one."""
    value = place.value
    for node, body in reversed(place.path):
        producer = value.producer()
        # An Identity, because the value may be an output of the body already. What no node makes is an input of it.
        before = body[0] if producer is None else None
        carried = edit.new_node("Identity", [value], before=before, after=producer).outputs[0]
        body.outputs.append(edit.like(carried, value))
        for other in edit.subgraphs(node):
            if other is not body:
                other.outputs.append(_nothing(other, value))
        node.resize_outputs(len(node.outputs) + 1)
        outer = node.outputs[-1]
        assert node.graph is not None
        outer.name = edit.fresh_name(node.graph, f"{value.name}_outside")
        outer.type = value.type
        if node.op_type == "Scan":
            _one_more_scan_output(node)
        value = outer
    return value


def _one_more_scan_output(node: ir.Node) -> None:
    """Axes and directions are given for every output that is stacked, or for none."""
    for name in ("scan_output_axes", "scan_output_directions"):
        if given := edit.attribute(node, name):
            node.attributes[name] = ir.AttrInt64s(name, [*given, 0])


def _nothing(graph: ir.Graph, like: ir.Value) -> ir.Value:
    assert like.dtype is not None
    empty = ir.tensor(np.empty(0, like.dtype.numpy()))
    node = ir.node("Constant", [], {"value": empty}, name=edit.fresh_name(graph, "nothing"))
    value = node.outputs[0]
    value.name = edit.fresh_name(graph, "nothing_out")
    value.type, value.shape = ir.TensorType(like.dtype), ir.Shape([0])
    graph.append(node)
    return value
