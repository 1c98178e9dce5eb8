"""Multiply-adds of a node in a run, from the shapes that the run had; operators of the dialect say their own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias

import onnx_ir as ir

from graphpress.backends import canonical
from graphpress.graph import edit
from graphpress.graph.quantized import dialect

_KERNEL_SLOT = {"Conv": 1, "FusedConv": 1, "ConvTranspose": 1, "ConvInteger": 1, "QLinearConv": 3}
_PRODUCTS = frozenset(
    {"MatMul", "FusedMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul", "DynamicQuantizeMatMul"}
)
_GATES = {"LSTM": 4, "DynamicQuantizeLSTM": 4, "GRU": 3, "RNN": 1}


Shapes: TypeAlias = list[tuple[str, tuple[int, ...]]]  # (element type, shape) of each input or output


@dataclass(frozen=True)
class KernelRun:
    """A node as it ran: microseconds in one run (all executions of it), and its tensors in each execution."""

    name: str
    op: str
    microseconds: float
    calls: list[tuple[Shapes, Shapes]] = field(default_factory=list)


def multiply_adds(node: ir.Node, kernel: KernelRun) -> int:
    """Multiply-adds of all executions of ``node`` in one run; 0 for operators without a sum of products."""
    return sum(_one(node, inputs, outputs) for inputs, outputs in kernel.calls if inputs and outputs)


def _one(node: ir.Node, inputs: Shapes, outputs: Shapes) -> int:
    op, x, y = node.op_type, inputs[0][1], outputs[0][1]
    if (own := dialect(node)) is not None:
        return 0 if own.macs is None else int(own.macs(node, x))
    if op in _KERNEL_SLOT:
        return math.prod(x if op == "ConvTranspose" else y) * math.prod(_kernel_shape(node, inputs)[1:])
    if op == "MatMulNBits":
        return math.prod(y) * int(edit.attribute(node, "K", 0))
    if op in ("Gemm", "FusedGemm"):
        return math.prod(y) * x[0 if edit.attribute(node, "transA", 0) else 1]
    if op in _PRODUCTS:
        return math.prod(y) * x[-1]
    if op in _GATES and len(x) == 3:
        hidden = int(edit.attribute(node, "hidden_size", 0))
        directions = 2 if edit.attribute(node, "direction", "forward") == "bidirectional" else 1
        return x[0] * x[1] * directions * _GATES[op] * hidden * (x[2] + hidden)
    if op == "Attention" and len(inputs) > 1:  # scores, then their product with the values
        return 2 * math.prod(x) * inputs[1][1][-2]
    return 0


def _kernel_shape(node: ir.Node, inputs: Shapes) -> tuple[int, ...]:
    """Of a convolution: from the graph, else from the run, which leaves out what was packed before; () if neither."""
    value = node.inputs[_KERNEL_SLOT[node.op_type]]
    w = canonical.weight(value)
    shape = w.value.shape if w is not None else value.shape if value is not None else None
    if shape is not None and shape.is_static():
        return tuple(shape.numpy())
    rank = len(inputs[0][1])
    return next((s for _, s in inputs[1:] if len(s) == rank), (0, 0))
