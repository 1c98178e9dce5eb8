"""Store the pruned weights of a graph small, and back: what a file holds, not what is computed.

A float MatMul whose weight nobody else reads becomes ``SparseMatMul``; any other n:4 constant comes from a
``SparseWeight``. A backend unpacks, rewrites as it would any graph, and packs what is left of the pattern.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit, pattern
from graphpress.keys import SPARSITY
from graphpress.ops import dense_packing, sparse_codes, sparse_matmul, sparse_weight
from graphpress.ops.base import DOMAIN, attach
from graphpress.ops.sparse_codes import GROUP, Packed

WORTH = 512  # bytes: less saving than that is eaten by the node
VALUES, INDICES = ".values", ".indices"


def pack(model: ir.Model, value: ir.Value, axis: int, n: int) -> int:
    """Store one initializer packed along ``axis`` if it has the pattern n:4 there and that saves anything.

    The model must import at least opset 18.

    Returns:
        The bytes that it takes now; 0 where it was left as it is.
    """
    tensor, graph = value.const_value, value.graph
    if tensor is None or tensor.dtype not in sparse_weight.TYPES or not isinstance(graph, ir.Graph) or n >= GROUP:
        return 0
    if value.is_graph_input() or value.is_graph_output() or not value.uses():
        return 0
    kept = tensor.size * n // GROUP
    if tensor.nbytes - kept * tensor.dtype.itemsize - kept / GROUP < WORTH:
        return 0
    packed = sparse_codes.pack(tensor.numpy(), axis, n)
    if packed is None:
        return 0
    _write(model, graph, value, packed)
    return packed.values.nbytes + packed.indices.nbytes


def pack_all(model: ir.Model, patterns: set[int]) -> int:
    """Pack every constant that has one of the patterns n:4 along an axis that a layer may sum over; how many."""
    done = 0
    for graph in edit.graphs(model):
        for value in list(graph.initializers.values()) if isinstance(graph, ir.Graph) else ():
            rank = len(value.const_value.shape) if value.const_value is not None else 0
            axes = (0, 1) if rank == 2 else (1,) if rank > 2 else ()
            done += any(pack(model, value, axis, n) > 0 for n in sorted(patterns) for axis in axes)
    return done


def unpack(model: ir.Model) -> set[int]:
    """Make every packed weight an initializer again, under its name; the patterns n there were."""
    found = set()
    for node in list(packed_nodes(model)):
        found.add(int(edit.attribute(node, "n")))
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        if node.op_type == sparse_weight.OP.name:
            old = node.outputs[0]
            name, old.name = old.name, edit.fresh_name(graph, f"{old.name}_packed")
            dense = _dense(node, name or "weight")
            edit.replace(old, dense)
        else:
            values = node.inputs[1]
            assert values is not None
            dense = _dense(node, (values.name or "weight").removesuffix(VALUES))
            _product(node, "MatMul", [node.inputs[0], dense], {}, "")
        edit.remove_unused(node.outputs if node.graph is not None else node.inputs)
    for op in (sparse_weight.OP, sparse_matmul.OP):
        model.functions.pop((DOMAIN, op.name, ""), None)
    return found


def unpacked(model: ir.Model) -> ir.Model:
    """The model itself where nothing is packed, else a copy with dense weights, and with codes in tensors of theirs."""
    if next(packed_nodes(model), None) is None and next(dense_packing.packed_nodes(model), None) is None:
        return model
    copy = model.clone()
    unpack(copy)
    dense_packing.unpack(copy)
    return copy


def packed_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """The nodes that hold packed weights, outside of functions."""
    kinds = (sparse_weight.OP.name, sparse_matmul.OP.name)
    for graph in edit.graphs(model):
        if isinstance(graph, ir.Graph):
            yield from (n for n in graph if n.domain == DOMAIN and n.op_type in kinds)


def _write(model: ir.Model, graph: ir.Graph, value: ir.Value, packed: Packed) -> None:
    name = value.name or "weight"
    operands: list[ir.Value | None] = [
        edit.add_const(graph, packed.values, name + VALUES),
        edit.add_const(graph, packed.indices, name + INDICES),
    ]
    attributes = {"n": packed.n, "shape": list(packed.shape), "perm": list(packed.perm)}
    uses = list(value.uses())
    reader, slot = uses[0]
    if len(uses) == 1 and slot == 1 and _is_product(reader, graph, packed):
        attach(model, sparse_matmul.OP)
        _product(reader, sparse_matmul.OP.name, [reader.inputs[0], *operands], attributes, DOMAIN)
        graph.initializers.pop(name, None)
        return
    attach(model, sparse_weight.OP)
    first = graph[0]
    node = edit.new_node(
        sparse_weight.OP.name, operands, attributes, before=first, domain=DOMAIN, name=f"{name}.unpack"
    )
    out = edit.like(node.outputs[0], value)
    out.metadata_props.update(value.metadata_props)
    for user, place in uses:
        edit.set_input(user, place, out)
    graph.initializers.pop(name, None)
    value.name, out.name = None, name


def _is_product(node: ir.Node, graph: ir.Graph, packed: Packed) -> bool:
    floats = packed.values.dtype != np.int8 and packed.values.ndim == 2
    return floats and node.op_type == "MatMul" and node.domain == "" and node.graph is graph


def _product(
    old: ir.Node, op_type: str, inputs: list[ir.Value | None], attributes: dict[str, object], domain: str
) -> None:
    """Put another operator in the place of a product, under its name."""
    node = edit.new_node(op_type, inputs, attributes, before=old, domain=domain, name=f"{old.name}_dense")
    edit.stand_for(old.outputs[0], edit.like(node.outputs[0], old.outputs[0]))
    edit.remove_unused(edit.supersede(old, node.outputs))


def _dense(node: ir.Node, name: str) -> ir.Value:
    slot = 0 if node.op_type == sparse_weight.OP.name else 1
    values, indices = (edit.constant(v) for v in node.inputs[slot : slot + 2])
    assert values is not None and indices is not None and isinstance(node.graph, ir.Graph)
    n, shape, perm = (edit.attribute(node, key) for key in ("n", "shape", "perm"))
    weight = sparse_codes.unpack(Packed(values, indices, int(n), tuple(shape), tuple(perm)))
    return edit.add_const(node.graph, weight, name)


def pattern_of(node: ir.Node) -> tuple[int, int, int] | None:
    """(n, m, axis of the weight) of a layer that notes a pattern."""
    axis = pattern.reduction_axis(node) if not node.domain else None
    if axis is None or SPARSITY not in node.metadata_props:
        return None
    return (*pattern.parse(node.metadata_props[SPARSITY]), axis)
