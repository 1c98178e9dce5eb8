"""Nodes that are one call in torch: a product with a weight that torch keeps as (out, in), and the bias behind it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir
import torch.nn.functional as F

from graphpress.backends.fx import shelf
from graphpress.backends.fx.values import Values
from graphpress.graph import edit
from graphpress.graph.readers import bias_behind, plain_gemm


@dataclass(frozen=True)
class LinearCall:
    """``x W^T + b`` of a MatMul or Gemm; ``last`` gives it, an Add where the bias is one."""

    product: ir.Node
    last: ir.Node
    weight: ir.Value
    bias: ir.Value | None

    def add(self, values: Values) -> None:
        """Add the call under the last node's name; what is noted of sites goes by the product's."""
        x, bias = values.operand(self.product, 0, "Tensor"), values.wanted(self.bias, "Tensor")
        args = (x, values.parameter(self.weight), *(() if bias is None else (bias,)))
        values.bind(self.last.outputs[0], values.call(self.last, F.linear, args, {}, of=self.product))


def linear_calls(graph: ir.Graph, values: Values) -> dict[ir.Node, LinearCall | None]:
    """What stands for some nodes of the graph, by the last of them; None for those not to be computed."""
    kernels, asked = values.options.kernels, values.options.asked
    found: dict[ir.Node, LinearCall | None] = {}
    for node in graph:
        weight = None if node in kernels.at or node in kernels.replaced else _weight(node)
        if weight is not None and id(weight) in values.local and (linear := _linear(node, weight, asked)) is not None:
            found |= {linear.product: None, linear.last: linear}
    for made in {v.producer() for n in found for v in n.inputs[1:2] if v is not None}:
        if made is not None and made.op_type == "Transpose" and _hidden(made, asked):
            found |= {made: None} if all(u.node in found for u in made.outputs[0].uses()) else {}
    return found


def _linear(node: ir.Node, weight: ir.Value, asked: Collection[ir.Value]) -> LinearCall | None:
    out = shelf.torch_shape(weight)[0]
    if node.op_type == "Gemm":
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        fits = plain_gemm(node) and (bias is None or _is_bias(bias, out))
        return LinearCall(node, node, weight, bias) if fits else None
    if _hidden(node, asked) and (found := bias_behind(node, out)) is not None:
        add, slot = found
        return LinearCall(node, add, weight, add.inputs[slot])
    return LinearCall(node, node, weight, None)


def _weight(node: ir.Node) -> ir.Value | None:
    """The constant that torch keeps as (out, in); None where the node is no product with one."""
    if node.domain or node.op_type not in ("MatMul", "Gemm") or len(node.inputs) < 2:
        return None
    value, across = node.inputs[1], bool(edit.attribute(node, "transB", 0)) if node.op_type == "Gemm" else False
    maker = value.producer() if value is not None else None
    if not across and maker is not None and maker.op_type == "Transpose" and not maker.domain:
        value, across = maker.inputs[0], True
    if not edit.is_constant(value) or value is None or value.dtype is None or not value.dtype.is_floating_point():
        return None
    matrix = value.shape is not None and len(value.shape) == 2
    return value if matrix and (shelf.form(value) == "transpose") != across else None


def _is_bias(value: ir.Value, out: int) -> bool:
    return edit.is_constant(value) and value.shape is not None and value.shape.numpy() == (out,)


def _hidden(node: ir.Node, asked: Collection[ir.Value]) -> bool:
    """Whether nobody but its readers wants to see what a node gives."""
    return not node.outputs[0].is_graph_output() and node.outputs[0] not in asked
