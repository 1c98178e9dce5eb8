"""Fill in the types and shapes that are not stated, by onnx's shape inference on the graph without its weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx.shape_inference
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import edit
from graphpress.passes.clean.constants import static
from graphpress.types import Numerics

# Only small constants (shapes, axes) steer inference; larger ones go in as inputs of known type.
_SMALL = 1024  # bytes


@dataclass(frozen=True)
class InferShapes(Pass):
    """Annotate values with types and shapes. What is stated stays; inputs and outputs are never changed.

    Symbolic dimensions keep their names; a dimension that inference invents a name for stays unknown.
    """

    name: ClassVar[str] = "infer-shapes"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        if all(_is_known(o) for n in edit.nodes(model) for o in n.outputs):
            return
        typed = _type_by_schema(model)
        proto = _weightless(model)
        try:
            inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=False, data_prop=True)
        except (onnx.shape_inference.InferenceError, ValueError) as e:
            report.skip("model", f"shape inference failed: {str(e).splitlines()[0]}")
            return
        report.changed = typed + _merge(model.graph, inferred.graph, _symbols(model.graph))


def _type_by_schema(model: ir.Model) -> int:
    """Type the outputs of operators of other domains than the default one (ai.onnx.ml), which onnx infers nothing of,
    where the schema allows one type only, or that of an input. Returns how many."""
    found = 0
    for node in edit.nodes(model):
        version = model.opset_imports.get(node.domain)
        if not node.domain or version is None or not onnx.defs.has(node.op_type, domain=node.domain):
            continue
        schema = onnx.defs.get_schema(node.op_type, max_inclusive_version=version, domain=node.domain)
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        given = {f.type_str: v.type for f, v in zip(schema.inputs, node.inputs, strict=False) if v is not None}
        for formal, value in zip(schema.outputs, node.outputs, strict=False):
            (only, *more) = allowed.get(formal.type_str, [formal.type_str])
            kind = _TENSORS.get(only) if not more else None
            if value.type is None and value.name and (inferred := given.get(formal.type_str) or kind) is not None:
                value.type, found = inferred, found + 1
    return found


_TENSORS = {f"tensor({t})": ir.TensorType(d) for t, d in (("float", ir.DataType.FLOAT), ("int64", ir.DataType.INT64))}


def _is_known(value: ir.Value) -> bool:
    shape = value.shape
    return not value.name or (
        value.type is not None and shape is not None and all(isinstance(d, int) or d.value for d in shape)
    )


def _weightless(model: ir.Model) -> onnx.ModelProto:
    """The model with its large initializers turned into inputs."""
    proto = onnx.ModelProto(ir_version=max(model.ir_version or 0, 4))
    for domain, version in model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    graph = proto.graph
    graph.name = model.graph.name or "graph"
    for value in model.graph.inputs:
        ir.serde.serialize_value_into(graph.input.add(), value)
    for value in model.graph.initializers.values():
        _constant_into(graph, value)
    for node in model.graph:
        ir.serde.serialize_node_into(graph.node.add(), node)
        _stated_into(graph, node.outputs)
    for value in model.graph.outputs:
        ir.serde.serialize_value_into(graph.output.add(), value)
    proto.functions.extend(ir.serde.serialize_function(f) for f in model.functions.values())
    return proto


def _constant_into(graph: onnx.GraphProto, value: ir.Value) -> None:
    tensor = value.const_value
    if tensor is None or value.is_graph_input():
        return
    if tensor.nbytes <= _SMALL:
        ir.serde.serialize_tensor_into(graph.initializer.add(), tensor)
        graph.initializer[-1].name = value.name or ""
        return
    stated = ir.Value(name=value.name, shape=ir.Shape(static(tensor.shape)), type=ir.TensorType(tensor.dtype))
    ir.serde.serialize_value_into(graph.input.add(), stated)


def _stated_into(graph: onnx.GraphProto, values: Iterable[ir.Value]) -> None:
    for value in values:
        if value.name and value.type is not None and not value.is_graph_output():
            ir.serde.serialize_value_into(graph.value_info.add(), value)


def _symbols(graph: ir.Graph) -> set[str]:
    """Names of dimensions that the model itself uses."""
    values = [*graph.inputs, *graph.outputs, *(o for n in graph for o in n.outputs)]
    return {d.value for v in values for d in v.shape or () if isinstance(d, ir.SymbolicDim) and d.value}


def _merge(graph: ir.Graph, proto: onnx.GraphProto, symbols: set[str]) -> int:
    known = {info.name: info.type for info in (*proto.value_info, *proto.output)}
    changed = 0
    for node, twin in zip(graph, proto.node, strict=True):
        for value in node.outputs:
            if value.name in known and not (value.is_graph_output() and value.type is not None):
                changed += _annotate(value, known[value.name], symbols)
        bodies = {a.name: a for a in twin.attribute if a.HasField("g")}
        for name, attr in node.attributes.items():
            if name in bodies and attr.type == ir.AttributeType.GRAPH:
                changed += _merge(attr.as_graph(), bodies[name].g, symbols)
    return changed


def _annotate(value: ir.Value, proto: onnx.TypeProto, symbols: set[str]) -> bool:
    before = (value.type, value.shape)
    if value.type is None:
        value.type = ir.serde.deserialize_type_proto_for_type(proto)
    shape = ir.serde.deserialize_type_proto_for_shape(proto)
    if shape is not None:
        value.shape = _combined(value.shape, shape, symbols)
    return before != (value.type, value.shape)


def _combined(stated: ir.Shape | None, inferred: ir.Shape, symbols: set[str]) -> ir.Shape:
    """The stated dimensions, and the inferred ones where nothing or only a name is stated."""
    dims = [d if isinstance(d, int) or d.value in symbols else None for d in inferred]
    if stated is None:
        return ir.Shape(dims)
    if len(stated) != len(dims):
        return stated
    return ir.Shape(
        [
            b if isinstance(b, int) and not isinstance(a, int) else a if isinstance(a, int) or a.value else b
            for a, b in zip(stated, dims, strict=True)
        ]
    )
