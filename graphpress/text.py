"""A short printer for graphs: one line a node, a window around a node, a digest, the lines that differ."""

from __future__ import annotations

import difflib
import hashlib

import onnx_ir as ir

from graphpress import edit


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


def fingerprint(model: ir.Model) -> str:
    """A digest of nodes, attributes, names, types and tensor identities: equal means that nothing was rewritten.

    A tensor written in place is not seen; replacing it is.
    """
    digest = hashlib.sha256()
    for graph in edit.graphs(model):
        digest.update(repr([value(v) for v in (*graph.inputs, *graph.outputs)]).encode())
        if isinstance(graph, ir.Graph):
            for name, v in graph.initializers.items():
                digest.update(f"{name}={id(v.const_value)}".encode())
        for node in graph:
            attrs = [(k, id(a)) for k, a in node.attributes.items()]
            digest.update(f"{line(node)}{attrs}{sorted(node.metadata_props.items())}".encode())
    digest.update(repr(sorted(model.opset_imports.items()) + sorted(model.functions)).encode())
    return digest.hexdigest()
