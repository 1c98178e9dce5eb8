"""Counts what folding is there to remove: conversions between float and integers that no integer kernel absorbs."""

from __future__ import annotations

import onnx_ir as ir

from graphpress import edit
from graphpress.base import Context
from graphpress.passes.fold.grid import is_dequantize, is_quantize

# Operators for which a runtime with QDQ support has a kernel from integers to integers; a target says it better.
INTEGER = frozenset(
    [
        "Add",
        "AveragePool",
        "Concat",
        "Conv",
        "Gemm",
        "GlobalAveragePool",
        "LeakyRelu",
        "MatMul",
        "Mul",
        "Sigmoid",
        "Softmax",
        "Where",
    ]
)
FREE_OUTPUT = frozenset({"Gemm", "MatMul"})  # these have kernels from integers to float as well


def integer_ops(ctx: Context) -> frozenset[str]:
    """The operators that the target computes on integers when every edge is quantized."""
    if ctx.target is None:
        return INTEGER
    return frozenset(c.op for c in ctx.target.capabilities if c.mode == "static")


def conversions(model: ir.Model, integer: frozenset[str] = INTEGER) -> list[ir.Node]:
    """The Q and DQ nodes that are real work at run time.

    Those on constants do not count, nor do those around an operator of ``integer`` whose inputs all come from DQ and
    whose outputs all go to Q.
    """
    return [n for n in edit.nodes(model) if _converts(n, integer)]


def _converts(node: ir.Node, integer: frozenset[str]) -> bool:
    source = node.inputs[0] if node.inputs else None
    if source is None or edit.is_constant(source):
        return False
    if is_quantize(node):
        return not _fused(source.producer(), integer)
    if not is_dequantize(node):
        return False
    out = node.outputs[0]
    return out.is_graph_output() or not all(_fused(user, integer) for user, _ in out.uses())


def _fused(node: ir.Node | None, integer: frozenset[str]) -> bool:
    if node is None or node.domain != "" or node.op_type not in integer:
        return False
    return reads_integers(node) and (node.op_type in FREE_OUTPUT or _gives_integers(node))


def reads_integers(node: ir.Node) -> bool:
    """Whether every computed input comes from a DQ, and one does."""
    producers = [v.producer() for v in node.inputs if v is not None and not edit.is_constant(v)]
    return bool(producers) and all(is_dequantize(p) for p in producers)


def _gives_integers(node: ir.Node) -> bool:
    uses = [user for out in node.outputs for user, _ in out.uses()]
    return bool(uses) and all(map(is_quantize, uses)) and not any(o.is_graph_output() for o in node.outputs)
