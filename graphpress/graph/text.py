"""A short printer for graphs: one line a node, a window around a node, a digest, the lines that differ."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import onnx_ir as ir

from graphpress.graph import edit


def value(v: ir.Value | None) -> str:
    """``name:float[1,3,32,32]``; ``_`` for an absent input."""
    if v is None:
        return "_"
    dtype = v.dtype.name.lower() if v.dtype is not None else "?"
    shape = "?" if v.shape is None else ",".join(str(d.value if isinstance(d, ir.SymbolicDim) else d) for d in v.shape)
    return f"{v.name}:{dtype}[{shape}]"


def line(node: ir.Node) -> str:
    """``y = Conv(x, w) {strides=[1, 1]}  # name``."""
    outs = ", ".join(value(o) for o in node.outputs if o.name)
    ins = ", ".join((i.name or "?") if i is not None else "_" for i in node.inputs)
    attrs = ", ".join(f"{k}={_attribute(a)}" for k, a in node.attributes.items())
    op = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    return f"{outs} = {op}({ins})" + (f" {{{attrs}}}" if attrs else "") + f"  # {node.name}"


def _attribute(attr: ir.Attr) -> str:
    if attr.is_ref():
        return f"@{attr.ref_attr_name}"
    if attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return "<graph>"
    if attr.type in (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS):
        return "<tensor>"
    shown = str(attr.value)
    return shown if len(shown) <= 40 else shown[:37] + "..."


def window(node: ir.Node, size: int = 4) -> str:
    """The nodes around ``node`` in its graph, that one marked; never the whole graph."""
    if node.graph is None:
        return f"> {line(node)}"
    around = list(node.graph)
    at = next((i for i, n in enumerate(around) if n is node), 0)
    return "\n".join(("> " if n is node else "  ") + line(n) for n in around[max(0, at - size) : at + size + 1])


def lines(model: ir.Model) -> list[str]:
    """Every node of every graph, a line each."""
    return [line(n) for n in edit.nodes(model)]


def diff(before: ir.Model, after: ir.Model) -> str:
    """Unified diff of the two listings, without context."""
    return "\n".join(difflib.unified_diff(lines(before), lines(after), "before", "after", n=0, lineterm=""))


def state(model: ir.Model) -> list[object]:
    """Everything a pass can change, for comparison with ``==``: equal means that nothing was rewritten.

    Objects stand for themselves and are kept alive by the list, so no identity can be reused meanwhile. A tensor
    written in place is not seen; replacing it is.
    """
    found: list[object] = [dict(model.opset_imports), list(model.functions), dict(model.metadata_props)]
    for graph in edit.graphs(model):
        found += [graph, *map(_identity, (*graph.inputs, *graph.outputs))]
        if isinstance(graph, ir.Graph):
            found += [(k, _Same(v.const_value)) for k, v in graph.initializers.items()]
        for node in graph:
            found += [node, node.name, node.op_type, node.domain, *node.inputs, *map(_identity, node.outputs)]
            found += [(k, _Same(a)) for k, a in node.attributes.items()]
            found.append(dict(node.metadata_props))
    return found


def _identity(v: ir.Value) -> tuple[object, ...]:
    return v, v.name, v.dtype, None if v.shape is None else tuple(v.shape)


@dataclass(frozen=True, eq=False)
class _Same:
    """Equal only to the same object, however its class compares."""

    thing: object

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.thing is other.thing

    __hash__ = None  # type: ignore[assignment]
