"""Follow channels through a graph, operator by operator; what is not known here keeps channels in place."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from graphpress.passes.structure.channels import channel_moves as moves
from graphpress.passes.structure.channels import channel_ops as ops
from graphpress.passes.structure.channels.channels import Channels, Flow

_UNARY = {
    "Identity", "Cast", "Dropout", "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu", "Sigmoid", "HardSigmoid", "Tanh",
    "HardSwish", "Mish", "Swish", "Softplus", "Softsign", "ThresholdedRelu", "Erf", "Exp", "Log", "Sqrt", "Reciprocal",
    "Neg", "Abs", "Sign", "Floor", "Ceil", "Round", "Not", "Sin", "Cos", "IsNaN", "Shrink",
}  # fmt: skip
_ELEMENTWISE = {
    "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "Where", "PRelu", "Clip", "Equal", "Less",
    "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Mod",
}  # fmt: skip
_POOLS = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "GlobalLpPool", "Resize"}
_SHAPES = {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}
_NORMS = {"LayerNormalization", "RMSNormalization"}
_ALONG = {"Softmax", "LogSoftmax", "LpNormalization"}
_SIZES = {"Shape", "Size"}  # read no channel


def follow(model: ir.Model) -> Channels:
    """The channels of a model's main graph."""
    flow = Flow()
    for node in model.graph:
        _step(flow, node)
    for value, atoms in flow.atoms.items():
        flow.channels.stand(atoms)
        if value.is_graph_output():
            flow.channels.hold(atoms, "the caller of the model reads them")
        elif any(u.node.graph is not model.graph for u in value.uses()):
            flow.channels.hold(atoms, "a body of If, Loop or Scan reads them")
    return flow.channels


def _step(flow: Flow, node: ir.Node) -> None:
    op = node.op_type if node.domain == "" else ""
    if op in _SIZES:
        return
    handler = _HANDLERS.get(op)
    if handler is None:
        flow.hold(node)
    elif why := handler(flow, node):
        flow.hold(node, f"{op} {node.name!r}: {why}")


_Handler = Callable[[Flow, ir.Node], str]
_HANDLERS: dict[str, _Handler] = {
    **dict.fromkeys(_UNARY, ops.unary), **dict.fromkeys(_ELEMENTWISE, ops.elementwise),
    **dict.fromkeys(_POOLS, ops.pool), **dict.fromkeys(_SHAPES, moves.resize), **dict.fromkeys(_NORMS, ops.norm),
    **dict.fromkeys(_ALONG, ops.along),
    **{f"Reduce{k}": ops.reduce for k in ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp")},
    "MatMul": ops.linear, "Gemm": ops.linear, "Conv": ops.linear, "Attention": ops.attention,
    "BatchNormalization": ops.batchnorm, "InstanceNormalization": ops.batchnorm, "Transpose": moves.transpose,
    "Expand": moves.expand, "Concat": moves.concat, "Split": moves.split, "Slice": moves.cut, "Gather": moves.gather,
    "Pad": moves.pad,
}  # fmt: skip
