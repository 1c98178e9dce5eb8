"""MLP pairs: a linear layer that reads what an activation function gives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from graphpress.graph import edit
from graphpress.passes.structure.layers.linear import Linear, linear
from graphpress.passes.structure.layers.norms import find_norms

BENDS = (
    "Relu", "Gelu", "Sigmoid", "Tanh", "Elu", "Selu", "Celu", "LeakyRelu", "PRelu", "HardSwish", "HardSigmoid", "Swish",
    "Mish", "Softplus", "Softsign", "ThresholdedRelu", "Clip", "Erf", "Abs", "Pow", "Sqrt", "Exp", "Max", "Min",
)  # fmt: skip
_PASSES = ("Identity", "Dropout", "Cast")


@dataclass(frozen=True, eq=False)
class MlpPair:
    """An activation and the linear layers that read it.

    Attributes:
        activation: The node that gives what they read.
        value: What they read [..., width].
        down: The layers, MatMul or Gemm.
    """

    activation: ir.Node
    value: ir.Value
    down: tuple[Linear, ...]

    @property
    def width(self) -> int:
        return self.down[0].shape[1]


def find_pairs(nodes: Iterable[ir.Node]) -> list[MlpPair]:
    """The pairs among some nodes, in the order of their layers. What a norm gives is none, whatever spells it out."""
    nodes = list(nodes)
    norms = {node for norm in find_norms(nodes) for node in norm.nodes}
    found: dict[ir.Value, tuple[ir.Node, list[Linear]]] = {}
    for node in nodes:
        view = linear(node) if node.op_type in ("MatMul", "Gemm") else ""
        bent = _bent(view.input) if isinstance(view, Linear) else None
        if isinstance(view, Linear) and bent is not None and bent not in norms:
            found.setdefault(view.input, (bent, []))[1].append(view)
    return [MlpPair(bent, value, tuple(down)) for value, (bent, down) in found.items()]


def _bent(value: ir.Value) -> ir.Node | None:
    """The activation function, or the product of two computed values, that gives ``value``."""
    node = value.producer()
    while node is not None and node.domain == "" and node.op_type in _PASSES and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None:
        return None
    if node.op_type in BENDS and node.domain in ("", "com.microsoft"):
        return node
    product = node.op_type == "Mul" and node.domain == "" and not any(edit.is_constant(v) for v in node.inputs)
    return node if product else None
