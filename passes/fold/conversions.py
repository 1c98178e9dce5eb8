"""Counts what folding is there to remove: conversions between float and integers that no integer kernel absorbs."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from graphpress.context import Context
from graphpress.graph import edit
from graphpress.graph.grid import is_dequantize, is_quantize

# Operators for which a runtime that knows QDQ has kernels from integers to integers, and whether the Q behind them is
# required or optional. What a target says goes before this.
INTEGER: Mapping[str, str] = {
    **dict.fromkeys(("Add", "AveragePool", "Concat", "Conv", "GlobalAveragePool", "LeakyRelu", "Mul"), "required"),
    **dict.fromkeys(("Sigmoid", "Softmax", "Where"), "required"),
    **dict.fromkeys(("Gemm", "MatMul"), "optional"),
}


def integer_ops(ctx: Context) -> Mapping[str, str]:
    """The operators that the target computes on integers, and whether they require a Q behind them."""
    if ctx.target is None:
        return INTEGER
    static = [c for c in ctx.target.capabilities if c.mode == "static"]
    return {c.op: c.output for c in static if c.output in ("required", "optional")}


def wide_moves(ctx: Context) -> frozenset[str]:
    """Data movement that runs on 16-bit integers on the target; without a target nothing is known to."""
    return frozenset() if ctx.target is None else ctx.target.wide_moves


def conversions(model: ir.Model, integer: Mapping[str, str] = INTEGER) -> list[ir.Node]:
    """The Q and DQ nodes that are real work at run time.

    Those on constants do not count, nor do those around an operator of ``integer`` whose inputs all come from DQ and
    whose outputs all go to Q.
    """
    return [n for n in edit.nodes(model) if _converts(n, integer)]


def _converts(node: ir.Node, integer: Mapping[str, str]) -> bool:
    source = node.inputs[0] if node.inputs else None
    if source is None or edit.is_constant(source):
        return False
    if is_quantize(node):
        return not _fused(source.producer(), integer)
    if not is_dequantize(node):
        return False
    out = node.outputs[0]
    return out.is_graph_output() or not all(_fused(user, integer) for user, _ in out.uses())


def _fused(node: ir.Node | None, integer: Mapping[str, str]) -> bool:
    if node is None or node.domain != "" or node.op_type not in integer:
        return False
    return reads_integers(node) and (integer[node.op_type] == "optional" or _gives_integers(node))


def reads_integers(node: ir.Node) -> bool:
    """Whether every computed input comes from a DQ, and one does."""
    producers = [v.producer() for v in node.inputs if v is not None and not edit.is_constant(v)]
    return bool(producers) and all(is_dequantize(p) for p in producers)


def _gives_integers(node: ir.Node) -> bool:
    uses = [user for out in node.outputs for user, _ in out.uses()]
    return bool(uses) and all(map(is_quantize, uses)) and not any(o.is_graph_output() for o in node.outputs)
