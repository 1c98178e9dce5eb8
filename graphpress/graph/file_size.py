"""What a model takes as a file: the tensors, and the names, types and notes around them."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit, half_storage
from graphpress.keys import BY, SCHEME

_NOTHING = np.zeros(0, np.uint8)
LONG = 24  # characters: shorter names are left alone


def shorten(model: ir.Model, known: Collection[str]) -> None:
    """Give what was added to a model short names, in place; those in ``known`` stay, and sites, inputs and outputs.

    Long module paths are repeated in each added node, scale and zero point otherwise, several times in each. Which pass
    made a quantizer is not noted either.
    """
    kept = {*known, *(n.name or "" for n in edit.nodes(model) if SCHEME in n.metadata_props)}
    kept |= {v.name or "" for graph in edit.graphs(model) for v in (*graph.inputs, *graph.outputs)}
    taken = {*kept, *(v.name or "" for n in edit.nodes(model) for v in n.outputs)}
    taken |= {n.name or "" for n in edit.nodes(model)} | {n for g in _graphs(model) for n in g.initializers}
    count = 0

    def short(name: str) -> str:
        nonlocal count
        if len(name) <= LONG or name in kept:
            return name
        count += 1
        while f"g{count:x}" in taken:
            count += 1
        return f"g{count:x}"

    for graph in _graphs(model):
        for value in list(graph.initializers.values()):
            value.name = short(value.name or "")
        for node in graph:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                node.metadata_props.pop(BY, None)
            node.name = short(node.name or "")
            for out in node.outputs:
                out.name = short(out.name or "")


def _graphs(model: ir.Model) -> list[ir.Graph]:
    return [g for g in edit.graphs(model) if isinstance(g, ir.Graph)]


def shortened_bytes(model: ir.Model, known: Collection[str]) -> int:
    """Those of the file once names are short; the model stays as it is."""
    clone = model.clone()
    shorten(clone, known)
    return file_bytes(clone)


def names(model: ir.Model) -> set[str]:
    """Of all nodes and values."""
    values = (v.name or "" for n in edit.nodes(model) for v in n.outputs)
    return {*values, *(n for g in _graphs(model) for n in g.initializers), *(n.name or "" for n in edit.nodes(model))}


def untyped(model: ir.Model) -> None:
    """Take types that the tensors say themselves from initializers, in place: a file would hold them twice."""
    for graph in _graphs(model):
        for value in graph.initializers.values():
            outside = value.is_graph_input() or value.is_graph_output()
            if value.const_value is not None and not value.metadata_props and not outside:
                value.type = value.shape = None


def _more(tensor: ir.TensorProtocol) -> int:
    """Bytes of a tensor's message beyond those of one [0]: data, lengths."""
    size = tensor.nbytes
    return size + _varint(size) - 3 + sum(1 + _varint(d) for d in tensor.shape.numpy())


def _varint(count: int) -> int:
    return max(1, -(-int(count).bit_length() // 7))


def file_bytes(model: ir.Model) -> int:
    """About the bytes of the file that ``frontends.save`` writes, floats that are stored as halves later as halves."""
    light, stored = model.clone(), -half_storage.saved(model)
    untyped(light)
    for graph in _graphs(light):
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype != ir.DataType.STRING:
                stored += _more(value.const_value)
                value.const_value = ir.Tensor(_NOTHING, name=value.name)
    for node in edit.nodes(light):
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
    return stored + ir.to_proto(light).ByteSize()
