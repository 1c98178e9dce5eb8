"""Compute once what is computed twice: common subexpressions, equal constants."""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Hashable, MutableMapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import edit
from graphpress.types import Numerics

_NEVER = re.compile("Bernoulli|Dropout|Multinomial|Random.*|.*Sequence.*|.*QuantizeLinear")


@dataclass(frozen=True)
class MergeCommon(Pass):
    """Merge nodes of equal operator, operands and attributes, and equal constants, an inner graph's with an outer's.

    Random operators, control flow, calls of functions and quantization nodes are never merged, and neither are
    equal parameters: two layers that happen to start alike must stay free to be trained and quantized apart.

    Attributes:
        limit: Integer and boolean constants (shapes, axes, indices) of up to this many elements are merged; of float
            constants, scalars only.
    """

    name: ClassVar[str] = "merge-common"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    limit: int = 1024

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        roots: list[edit.Scope] = [model.graph, *model.functions.values()]
        for root in roots:
            report.changed += self._merge(root, {}, {})

    def _merge(
        self,
        scope: edit.Scope,
        nodes: MutableMapping[Hashable, ir.Node],
        constants: MutableMapping[Hashable, ir.Value],
    ) -> int:
        merged = self._merge_constants(scope, constants) if isinstance(scope, ir.Graph) else 0
        for node in list(scope):
            for body in edit.subgraphs(node):
                merged += self._merge(body, ChainMap({}, nodes), ChainMap({}, constants))
            key = _key(node)
            if key is None:
                continue
            first = nodes.setdefault(key, node)
            if first is not node and all(map(_replaceable, node.outputs)):
                for old, new in zip(node.outputs, first.outputs, strict=True):
                    edit.replace(old, new)
                edit.remove([node])
                merged += 1
        return merged

    def _merge_constants(self, graph: ir.Graph, known: MutableMapping[Hashable, ir.Value]) -> int:
        merged = 0
        for name, value in list(graph.initializers.items()):
            tensor = value.const_value
            if tensor is None or value.is_graph_input() or value.is_graph_output():
                continue
            limit = 1 if tensor.dtype.is_floating_point() else self.limit
            if tensor.size > limit or tensor.dtype == ir.DataType.STRING:
                continue
            first = known.setdefault((tensor.dtype, tuple(tensor.shape.numpy()), tensor.tobytes()), value)
            if first is not value:
                edit.replace(value, first)
                del graph.initializers[name]
                merged += 1
        return merged


def _replaceable(value: ir.Value) -> bool:
    return not value.is_graph_output()


def _key(node: ir.Node) -> Hashable | None:
    """Equal for nodes that compute the same; None for nodes that are never merged."""
    if node.domain != "" or _NEVER.fullmatch(node.op_type):
        return None
    attributes = []
    for name, attr in sorted(node.attributes.items()):
        value = _attribute_key(attr)
        if value is None:
            return None
        attributes.append((name, value))
    operands = tuple(id(v) if v is not None else None for v in node.inputs)
    return (node.op_type, operands, tuple(attributes), tuple(bool(o.name) for o in node.outputs))


def _attribute_key(attr: ir.Attr) -> Hashable | None:
    if attr.is_ref():
        return ("ref", attr.ref_attr_name)
    kind = ir.AttributeType
    if attr.type in (kind.FLOAT, kind.INT, kind.STRING):
        return (attr.type, repr(attr.value))  # 0.0 and -0.0 are equal, but not the same
    if attr.type in (kind.FLOATS, kind.INTS, kind.STRINGS):
        return (attr.type, tuple(attr.value))
    if attr.type == kind.TENSOR and attr.as_tensor().dtype != ir.DataType.STRING and attr.as_tensor().size <= 64:
        tensor = attr.as_tensor()
        return (attr.type, tensor.dtype, tuple(tensor.shape.numpy()), tensor.tobytes())
    return None
