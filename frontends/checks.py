"""What a model file has to be, checked on the protobuf message before a graph is made of it.

Every rule raises ``InvalidModel`` naming the node, value or initializer; the loader adds the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator
from typing import TypeAlias

import onnx
import onnx_ir as ir

from graphpress.errors import InvalidModel, nearest
from graphpress.frontends import settle, stored

OLDEST_OPSET = 7
MOST_BYTES = 1 << 40  # what no tensor of a graph may declare: a terabyte
STANDARD = {"", "ai.onnx"}
DOMAINS = STANDARD | {
    "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "com.microsoft", "com.microsoft.nchwc",
    "com.ms.internal.nhwc", "graphpress",
}  # fmt: skip
# Operators that ONNX Runtime has in the standard domain, where ONNX has none.
_RUNTIME_ONLY = {
    "Affine", "Crop", "DisentangledAttention_TRT", "DynamicSlice", "EfficientNMS_TRT", "GRUUnit", "GivenTensorFill",
    "ImageScaler", "MultilevelCropAndResize_TRT", "ParametricSoftplus", "PyramidROIAlign_TRT", "Scale", "ScaledTanh",
    "SimplifiedLayerNormalization",
}  # fmt: skip
Names: TypeAlias = Collection[str]
_D = ir.DataType
_TYPES = set(_D) - {_D.UNDEFINED}
# element type -> (field of TensorProto that holds it when it is not raw, entries of that field an element takes)
_FIELDS: dict[ir.DataType, tuple[str, float]] = {
    _D.FLOAT: ("float_data", 1), _D.COMPLEX64: ("float_data", 2), _D.DOUBLE: ("double_data", 1),
    _D.COMPLEX128: ("double_data", 2), _D.INT64: ("int64_data", 1), _D.UINT64: ("uint64_data", 1),
    _D.UINT32: ("uint64_data", 1), _D.STRING: ("string_data", 1), _D.INT4: ("int32_data", 1 / 2),
    _D.UINT4: ("int32_data", 1 / 2), _D.FLOAT4E2M1: ("int32_data", 1 / 2), _D.INT2: ("int32_data", 1 / 4),
    _D.UINT2: ("int32_data", 1 / 4),
}  # fmt: skip


def check_proto(model: onnx.ModelProto, store: stored.Store, domains: Collection[str]) -> None:
    """Check versions, operators, names, tensors and declared shapes of a model.

    Args:
        model: The message.
        store: Resolves data outside of it.
        domains: Domains of operators that are known beside the standard ones.

    Raises:
        InvalidModel: The first broken rule.
    """
    _versions(model)
    known = _Known(model, domains)
    _Graph(known, store).check(model.graph, set(), f"graph {model.graph.name!r}")
    if not model.graph.output:
        raise InvalidModel("the graph has no outputs")
    for function in model.functions:
        where = f"function {function.domain}::{function.name}"
        _Graph(known, store).body(function.node, set(function.input), function.output, where)
    known.refuse_recursion()


def _versions(model: onnx.ModelProto) -> None:
    if not model.ir_version or not model.HasField("graph"):
        lacks = "graph" if model.ir_version else "IR version"
        raise InvalidModel(f"not an ONNX model: it has no {lacks}", fix="Give a whole .onnx file.")
    for entry in model.opset_import:
        entry.domain = "" if entry.domain in STANDARD else entry.domain
    imported = [o.version for o in model.opset_import if o.domain == ""] or ([] if model.opset_import else [1])
    if not imported and any(n.domain in STANDARD for n in model.graph.node):
        raise InvalidModel("it imports no version of the standard operators", fix="Add one to its opset_import.")
    newest = onnx.defs.onnx_opset_version()
    if model.ir_version > onnx.IR_VERSION or max(imported, default=0) > newest:
        raise InvalidModel(
            f"IR version {model.ir_version}, opset {imported}: the installed onnx knows {onnx.IR_VERSION} and {newest}",
            fix="Install a newer onnx, or export for an older opset.",
        )
    if imported and min(imported) < OLDEST_OPSET:
        raise InvalidModel(
            f"opset {min(imported)} is older than {OLDEST_OPSET}, the oldest that is supported",
            fix="Export it anew, or raise it with onnx.version_converter.",
        )


class _Known:
    """Which operators there are."""

    def __init__(self, model: onnx.ModelProto, domains: Collection[str]) -> None:
        self.functions = {(f.domain, f.name): f for f in model.functions}
        self.domains = DOMAINS | set(domains)

    def operator(self, node: onnx.NodeProto, where: str) -> None:
        if (node.domain, node.op_type) in self.functions:
            return
        if node.domain not in self.domains:
            raise InvalidModel(
                f"{node.op_type} is of the unknown operator domain {node.domain!r}", where=where,
                fix=f"Define it by a function in the model, or load with domains=[{node.domain!r}].",
            )  # fmt: skip
        if node.domain in STANDARD and node.op_type not in _RUNTIME_ONLY and not onnx.defs.has(node.op_type, ""):
            names = {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""}
            raise InvalidModel(f"ONNX has no operator {node.op_type!r}", where=where, fix=nearest(node.op_type, names))

    def refuse_recursion(self) -> None:
        calls = {key: {(n.domain, n.op_type) for n in _all_nodes(f.node)} for key, f in self.functions.items()}
        if found := settle.circle(calls):
            raise InvalidModel(f"functions call one another in a circle: {', '.join('::'.join(k) for k in found)}")


class _Graph:
    """Checks one graph and those inside it."""

    def __init__(self, known: _Known, store: stored.Store) -> None:
        self.known, self.store = known, store

    def check(self, graph: onnx.GraphProto, outer: set[str], where: str) -> None:
        if graph.sparse_initializer:
            raise InvalidModel("sparse initializers are not supported", where=where, fix="Store them dense.")
        _decoded(graph.name)
        inputs = _unique([v.name for v in graph.input], f"input of {where}")
        initializers = _unique([t.name for t in graph.initializer], f"initializer of {where}")
        for tensor in graph.initializer:
            _tensor(tensor, self.store, f"initializer {tensor.name!r}")
        for value in (*graph.input, *graph.output, *graph.value_info):
            _declared(value)
        self.body(graph.node, inputs | initializers, [v.name for v in graph.output], where, outer)

    def body(
        self, nodes: Iterable[onnx.NodeProto], start: set[str], outputs: Iterable[str], where: str, outer: Names = ()
    ) -> None:
        """Each value is defined once, and what is read is defined in this graph or around it."""
        nodes = list(nodes)
        defined = set(start)
        for i, node in enumerate(nodes):
            for name in filter(None, node.output):
                if name in defined:
                    raise InvalidModel(f"defines value {name!r} a second time", where=_name(node, i))
                defined.add(name)
        visible = defined | set(outer)
        for i, node in enumerate(nodes):
            self.node(node, visible, _name(node, i))
        for name in outputs:
            if name not in defined:
                raise InvalidModel(f"output {name!r} of {where} is computed by no node")

    def node(self, node: onnx.NodeProto, visible: set[str], where: str) -> None:
        _decoded(node.name, node.op_type, node.domain, *node.input, *node.output, *(a.name for a in node.attribute))
        self.known.operator(node, where)
        for slot, name in enumerate(node.input):
            if name and name not in visible:
                raise InvalidModel(f"input {slot} reads {name!r}, which nothing defines", where=where)
        for attr in node.attribute:
            self.attribute(attr, visible, where)

    def attribute(self, attr: onnx.AttributeProto, visible: set[str], where: str) -> None:
        if not attr.type and not attr.ref_attr_name:
            raise InvalidModel(f"attribute {attr.name!r} has no type", where=where)
        if attr.type in (attr.SPARSE_TENSOR, attr.SPARSE_TENSORS):
            what = f"attribute {attr.name!r} is a sparse tensor: not supported"
            raise InvalidModel(what, where=where, fix="Store it dense.")
        for tensor in [attr.t] if attr.type == attr.TENSOR and not attr.ref_attr_name else attr.tensors:
            _tensor(tensor, self.store, f"{where} attribute {attr.name!r}")
        for graph in [attr.g] if attr.type == attr.GRAPH else attr.graphs:
            self.check(graph, visible, f"{attr.name} of {where}")


def _name(node: onnx.NodeProto, position: int) -> str:
    return f"node {node.name!r} ({node.op_type})" if node.name else f"node {position} ({node.op_type})"


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attr in node.attribute:
            for graph in (attr.g, *attr.graphs):
                yield from _all_nodes(graph.node)


def _decoded(*names: str | bytes) -> None:
    """Protobuf hands out as bytes what is not UTF-8."""
    for name in names:
        if isinstance(name, bytes):
            raise InvalidModel(f"the name {name[:40]!r} is not UTF-8", fix="Get the file again.")


def _unique(names: list[str], what: str) -> set[str]:
    known: set[str] = set()
    _decoded(*names)
    for name in names:
        if not name or name in known:
            raise InvalidModel(f"an {what} has no name" if not name else f"{what}: {name!r} is there twice")
        known.add(name)
    return known


def _declared(value: onnx.ValueInfoProto) -> None:
    """A declared static shape must be one that a machine can hold; negative sizes, an old habit, mean unknown."""
    _decoded(value.name)
    kind = value.type
    if kind.WhichOneof("value") == "map_type" or kind.sequence_type.elem_type.HasField("map_type"):
        raise InvalidModel("maps are not supported", where=f"value {value.name!r}", fix="Export without ZipMap.")
    dims = kind.tensor_type.shape.dim
    for dim in dims:
        if dim.dim_value < 0:
            dim.ClearField("dim_value")
    size = math.prod(d.dim_value for d in dims if d.HasField("dim_value"))
    if size > MOST_BYTES:
        shape = [d.dim_value or d.dim_param or "?" for d in dims]
        raise InvalidModel(f"shape {shape} would need terabytes", where=f"value {value.name!r}")


def _tensor(tensor: onnx.TensorProto, store: stored.Store, where: str) -> None:
    """The data is there and is as much as shape and type say; nothing is allocated."""
    try:
        _measure(tensor, store)
    except InvalidModel as e:
        raise InvalidModel(e.what, where=where, fix=e.fix) from e


def _measure(tensor: onnx.TensorProto, store: stored.Store) -> None:
    if tensor.data_type not in _TYPES:
        raise InvalidModel(f"element type {tensor.data_type} is unknown")
    if any(d < 0 for d in tensor.dims):
        raise InvalidModel(f"shape {list(tensor.dims)} has a negative size")
    dtype, size = _D(tensor.data_type), math.prod(tensor.dims)
    if dtype == _D.STRING and (tensor.HasField("raw_data") or tensor.data_location == tensor.EXTERNAL):
        raise InvalidModel("strings can be neither raw nor external data")
    if tensor.data_location == tensor.EXTERNAL:
        _external(tensor, store)
        return
    if tensor.HasField("raw_data"):
        have, want, unit = len(tensor.raw_data), -(-size * dtype.bitwidth // 8), "bytes"
    else:
        field, each = _FIELDS.get(dtype, ("int32_data", 1))
        have, want, unit = len(getattr(tensor, field)), math.ceil(size * each), f"entries of {field}"
    if have != want:
        raise InvalidModel(f"shape {list(tensor.dims)} of {dtype} needs {want} {unit}, the file has {have}")


def _external(tensor: onnx.TensorProto, store: stored.Store) -> None:
    for entry in tensor.external_data:
        if entry.key in ("offset", "length") and not re.fullmatch("[0-9]{1,18}", entry.value):
            raise InvalidModel(f"the {entry.key} of its external data is {entry.value[:40]!r}")
    reference = ir.serde.deserialize_tensor(tensor)
    assert isinstance(reference, ir.ExternalTensor)
    store.tensor(reference)
