"""Who alone reads a value: the next step of a chain, and the bias that a product without one has behind it."""

from __future__ import annotations

import onnx_ir as ir

from graphpress.graph import edit


def only_reader(value: ir.Value, *op_types: str) -> tuple[ir.Node, int] | None:
    """The node that alone reads ``value``, in the same graph and of one of these types, and the input that does.

    A graph output has its caller as a reader.
    """
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    ((node, slot),) = uses
    fits = node.op_type in op_types and node.domain == "" and node.graph is value.graph
    return (node, slot) if fits else None


def bias_behind(product: ir.Node, columns: int) -> tuple[ir.Node, int] | None:
    """The Add that alone reads a product, where it adds a constant [columns], and the input that holds it."""
    found = only_reader(product.outputs[0], "Add")
    if found is None:
        return None
    add, slot = found[0], 1 - found[1]
    tensor = edit.constant_tensor(add.inputs[slot])
    return (add, slot) if tensor is not None and tuple(tensor.shape.numpy()) == (columns,) else None


def plain_gemm(node: ir.Node) -> bool:
    """Whether a Gemm is a product plus a bias, up to a transposed B. Every other operator counts as one."""
    given = [edit.attribute(node, n, d) for n, d in (("alpha", 1.0), ("beta", 1.0), ("transA", 0))]
    return node.op_type != "Gemm" or given == [1.0, 1.0, 0]
