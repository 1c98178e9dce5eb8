"""Store codes of few values densely in a graph, and back: what a file holds, not what is computed.

The codes of weights whose scheme has fewer than their type (3 bits, three values or two in a 4-bit tensor) come from an
``UnpackCodes``. As with pruned weights, a backend unpacks, rewrites as it would any graph, and packs what its kernels
read: 4-bit codes, also where two share a byte.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit, quantized
from graphpress.keys import ORIGIN
from graphpress.ops import dense_codes, unpack_codes
from graphpress.ops.base import DOMAIN, attach

WORTH = 512  # bytes: less saving than that is eaten by the node
_FOUR = (ir.DataType.INT4, ir.DataType.UINT4)
_BYTES = {"MatMulNBits": 1, "GatherBlockQuantized": 0}  # com.microsoft -> the input whose bytes hold two codes
_DEPTH = 8  # nodes between stored codes and what multiplies by them, at most


def pack(model: ir.Model, value: ir.Value, *, nibbles: int = 1) -> int:
    """Store one initializer of 4-bit codes densely if that saves anything.

    The model must import at least opset 21.

    Args:
        nibbles: 2: it holds bytes of two codes each.

    Returns:
        The bytes that it takes now; 0 where it was left as it is.
    """
    tensor, graph = value.const_value, value.graph
    if tensor is None or not isinstance(graph, ir.Graph) or not value.is_initializer() or not tensor.size:
        return 0
    if value.is_graph_input() or value.is_graph_output() or not value.uses():
        return 0
    dense = dense_codes.pack(tensor.numpy(), nibbles=nibbles)
    if dense is None or tensor.nbytes - dense.nbytes < WORTH:
        return 0
    _write(model, graph, value, dense, tensor.dtype)
    return dense.nbytes


def pack_all(model: ir.Model, sites: Collection[str]) -> int:
    """Pack the 4-bit codes that nodes of these names read in the end, in a lowered graph too; how many."""
    done = 0
    for node in list(edit.nodes(model)) if sites else ():
        if (node.metadata_props.get(ORIGIN) or node.name) not in sites and node.name not in sites:
            continue
        slot = _BYTES.get(node.op_type) if node.domain == "com.microsoft" else None
        if slot is not None and edit.attribute(node, "bits", 4) == 4 and (value := node.inputs[slot]) is not None:
            done += pack(model, value, nibbles=2) > 0
        for value in dict.fromkeys(leaf for v in node.inputs for leaf in _leaves(v)):
            done += value.dtype in _FOUR and pack(model, value) > 0
    return done


def unpack(model: ir.Model) -> set[str]:
    """Make all packed codes initializers again, under their names; the names of the nodes that read them in the end."""
    found = set()
    for node in list(packed_nodes(model)):
        graph, old = node.graph, node.outputs[0]
        assert isinstance(graph, ir.Graph)
        found |= {reader.name or "" for reader, _ in quantized.readers(old)}
        dtype = ir.DataType(edit.attribute(node, "dtype"))
        codes = dense_codes.unpack(unpack_codes.read(node)).astype(np.int16).astype(dtype.numpy())
        name, old.name = old.name or "codes", edit.fresh_name(graph, f"{old.name}_packed")
        value = edit.add_const(graph, ir.Tensor(codes, dtype=dtype), name)
        value.metadata_props.update(old.metadata_props)
        edit.replace(old, value)
        edit.remove_unused([old])
    model.functions.pop((DOMAIN, unpack_codes.OP.name, ""), None)
    return found


def packed_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """The nodes that hold packed codes, outside of functions."""
    for graph in edit.graphs(model):
        if isinstance(graph, ir.Graph):
            yield from (n for n in graph if n.domain == DOMAIN and n.op_type == unpack_codes.OP.name)


def _write(model: ir.Model, graph: ir.Graph, value: ir.Value, dense: dense_codes.Dense, dtype: ir.DataType) -> None:
    attach(model, unpack_codes.OP)
    name, uses = value.name or "codes", list(value.uses())
    planes = [edit.add_const(graph, dense.low, f"{name}.low"), edit.add_const(graph, dense.high, f"{name}.high")]
    node = edit.new_node(
        unpack_codes.OP.name, planes, unpack_codes.attributes(dense, dtype), before=graph[0], domain=DOMAIN,
        name=f"{name}.unpack",
    )  # fmt: skip
    out = edit.like(node.outputs[0], value)
    out.type, out.shape = ir.TensorType(dtype), ir.Shape(dense.shape)
    out.metadata_props.update(value.metadata_props)
    for user, place in uses:
        edit.set_input(user, place, out)
    graph.initializers.pop(name, None)
    value.name, out.name = None, name


def _leaves(value: ir.Value | None, depth: int = _DEPTH) -> Iterator[ir.Value]:
    """The initializers that a value is computed from, none else being in it; nothing where others are."""
    if value is None or value.is_graph_input():
        return
    producer = value.producer()
    if producer is None:
        if value.is_initializer():
            yield value
        return
    if depth and all(v is None or _constant(v, depth - 1) for v in producer.inputs):
        for v in producer.inputs:
            yield from _leaves(v, depth - 1)


def _constant(value: ir.Value, depth: int) -> bool:
    producer = value.producer()
    if producer is None:
        return value.is_initializer() and not value.is_graph_input()
    return depth > 0 and all(v is None or _constant(v, depth - 1) for v in producer.inputs)
