"""One-node models at older opsets: the cases of ``onnx.backend.test`` written back to what operators once looked like.

A case's node is valid at an older version where its attributes and inputs were there already; an input that was an
attribute then (the axes of a Reduce, the bounds of a Clip) becomes one again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper  # noqa: TID251 - onnx_ir writes no models of opsets this old

from graphpress.tools.conformance.cases import Case, cases

FIRST = 7  # the oldest opset that ONNX Runtime and our loader take
_RENAMED = {"constant_value": "value", "K": "k"}  # input now, attribute then
_KIND = onnx.AttributeProto


@dataclass(frozen=True)
class Earlier:
    """A node at an older opset with inputs.

    Attributes:
        label: Which case it is, for messages.
        feeds: Arrays, or lists of them, by the names that the node reads.
        types: Types of what it reads and gives, by name.
    """

    label: str
    op: str
    opset: int
    node: onnx.NodeProto
    feeds: Mapping[str, Any]
    types: Mapping[str, onnx.TypeProto]

    def model(self, *, shapes: bool, constants: bool) -> onnx.ModelProto:
        """The model, with the inputs' shapes or without, with operands of integers as constants or as inputs."""
        held = {n: v for n, v in self.feeds.items() if constants and n != self.node.input[0] and _small(v)}
        inputs = [
            helper.make_value_info(n, _typed(self.types[n], v, shapes)) for n, v in self.feeds.items() if n not in held
        ]
        outputs = [helper.make_value_info(n, _unsized(self.types[n])) for n in self.node.output if n]
        initializers = [numpy_helper.from_array(v, n) for n, v in held.items()]
        graph = helper.make_graph([self.node], "earlier", inputs, outputs, initializers)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        made.ir_version = 8 if self.opset < 19 else 10 if self.opset < 24 else 12
        return made


def _small(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.size <= 64 and value.dtype != object


def _typed(kind: onnx.TypeProto, value: Any, shapes: bool) -> onnx.TypeProto:
    kind = _unsized(kind)
    if shapes and isinstance(value, np.ndarray) and kind.HasField("tensor_type"):
        return helper.make_tensor_type_proto(kind.tensor_type.elem_type, value.shape)
    return kind


def _unsized(kind: onnx.TypeProto) -> onnx.TypeProto:
    copy = onnx.TypeProto()
    copy.CopyFrom(kind)
    if copy.HasField("tensor_type"):
        copy.tensor_type.ClearField("shape")
    return copy


@functools.cache
def generations(op: str) -> tuple[int, ...]:
    """The versions at which the schema of an operator of the default domain changed; FIRST stands for older ones."""
    known = [s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.name == op and not s.domain]
    old = [v for v in known if v <= FIRST]
    return tuple(sorted({*([FIRST] if old else []), *(v for v in known if v > FIRST)}))


def earlier(case: Case, opset: int) -> Earlier | None:
    """The case's node at an opset, or None where it had no such form there."""
    graph = case.model.graph
    if len(graph.node) != 1 or graph.node[0].domain or not case.sets or not generations(graph.node[0].op_type):
        return None
    node = onnx.NodeProto()
    feeds = {v.name: _array(value) for v, value in zip(graph.input, case.sets[0][0], strict=False)}
    node.CopyFrom(graph.node[0])
    try:
        now, then = (onnx.defs.get_schema(node.op_type, v, "") for v in (_opset(case.model), opset))
    except onnx.defs.SchemaError:
        return None
    if not _inputs_back(node, now, then, feeds) or not _attributes_back(node, now, then):
        return None
    if then.max_output < len(node.output):
        return None
    types = {v.name: v.type for v in (*graph.input, *graph.output)}
    feeds = {n: v for n, v in feeds.items() if n in node.input}
    return Earlier(case.name, node.op_type, opset, node, feeds, types)


def _array(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic | bool | int | float) else value


def _opset(model: onnx.ModelProto) -> int:
    return next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))


def _inputs_back(node: onnx.NodeProto, now: Any, then: Any, feeds: Mapping[str, Any]) -> bool:
    """Make attributes of the inputs that were ones."""
    kept = [i for i, formal in enumerate(now.inputs) if _RENAMED.get(formal.name, formal.name) not in then.attributes]
    for i, name in enumerate(node.input):
        if i in kept or i >= len(now.inputs) or not name:
            continue
        attr = then.attributes[_RENAMED.get(now.inputs[i].name, now.inputs[i].name)]
        if name not in feeds:
            return False
        node.attribute.append(_attribute(attr, feeds[name]))
    if len(kept) < len(now.inputs):
        node.input[:] = [n for i, n in enumerate(node.input) if i in kept or i >= len(now.inputs)]
    _steps(node, now, then, feeds)
    while node.input and not node.input[-1]:
        node.input.pop()
    return len(node.input) <= then.max_input


def _steps(node: onnx.NodeProto, now: Any, then: Any, feeds: Mapping[str, Any]) -> None:
    """Leave out inputs that did not exist where they say what was always so: steps of 1, an empty roi."""
    while len(node.input) > then.max_input:
        value = feeds.get(node.input[-1])
        if not isinstance(value, np.ndarray) or not (value.size == 0 or (value == 1).all()):
            return
        node.input.pop()


def _attribute(attr: Any, value: np.ndarray) -> onnx.AttributeProto:
    kind = int(attr.type.value)
    flat = [float(v) if attr.type.name.startswith("FLOAT") else v for v in np.asarray(value).reshape(-1).tolist()]
    return helper.make_attribute(attr.name, flat if attr.type.name.endswith("S") else flat[0], attr_type=kind)


def _attributes_back(node: onnx.NodeProto, now: Any, then: Any) -> bool:
    for attr in list(node.attribute):
        if attr.name in then.attributes:
            continue
        default = now.attributes[attr.name].default_value
        if helper.get_attribute_value(attr) != (helper.get_attribute_value(default) if default.name else 0):
            return False
        node.attribute.remove(attr)
    given = {a.name for a in node.attribute}
    return all(name in given for name, a in then.attributes.items() if a.required)


def written_back(op: str | None = None, every: Sequence[Case] | None = None) -> Iterator[Earlier]:
    """Every node case at every generation of its operator but the one after which nothing came."""
    for case in every if every is not None else cases(("node",), op):
        if case.group in ("training", "random", "ml", "preview"):
            continue
        for opset in generations(case.model.graph.node[0].op_type):
            found = earlier(case, opset)
            if found is not None:
                yield found
