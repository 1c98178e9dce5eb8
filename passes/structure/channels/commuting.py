"""THE table: for each operator which moves it lets pass or takes up, and by which rule; and the walk that asks it.

An operator that is not here keeps its channels as they are, with that as the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphpress.passes.structure.channels import arithmetic as math
from graphpress.passes.structure.channels import moving
from graphpress.passes.structure.channels.lanes import along, covers, dims, size, slim, varying
from graphpress.passes.structure.channels.moves import Move
from graphpress.passes.structure.channels.survey import Survey
from graphpress.passes.structure.layers.norms import Norm


@dataclass(frozen=True)
class Rule:
    """One line of the table.

    Attributes:
        locate: What becomes of the channels that are read; it may refuse what depends on operands.
        moves: Those that the operator lets pass, or takes up.
        why: The reason for the others.
        makes: Whether it makes channels from constants too.
    """

    locate: math.Locate
    moves: frozenset[Move]
    why: str = "acts on the channels one by one, or mixes them"
    makes: bool = False


PERMUTE, SLICE, SCALE, SIGN, ROTATE = Move
_ORDER = frozenset({PERMUTE, SLICE})
_POSITIVE = _ORDER | {SCALE}  # homogeneous for positive factors
_FACTOR = _POSITIVE | {SIGN}
_ALL = frozenset(Move)
_FIXED = _ALL - {SLICE}  # their number stands in a constant

_POINTWISE = (
    "Elu", "Selu", "Celu", "Gelu", "Sigmoid", "HardSigmoid", "Tanh", "HardSwish", "Mish", "Swish", "Softplus",
    "Softsign", "ThresholdedRelu", "Erf", "Exp", "Log", "Sqrt", "Reciprocal", "Sign", "Floor", "Ceil", "Round", "Not",
    "Sin", "Cos", "IsNaN", "Shrink",
)  # fmt: skip
_JOINT = (
    "Pow", "Max", "Min", "Mean", "Clip", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Mod"
)  # fmt: skip

TABLE: dict[str, Rule] = {
    **dict.fromkeys(("Identity", "Neg"), Rule(math.same, _ALL)),
    "Cast": Rule(math.cast, _ALL),
    "Dropout": Rule(math.dropout, _ALL),
    **dict.fromkeys(("Relu", "LeakyRelu", "Abs"), Rule(math.same, _POSITIVE)),
    "PRelu": Rule(math.slope, _POSITIVE),
    **dict.fromkeys(_POINTWISE, Rule(math.same, _ORDER)),
    **dict.fromkeys(("Add", "Sub", "Sum"), Rule(math.share, _ALL)),
    **dict.fromkeys(("Mul", "Div"), Rule(math.product, _ALL, makes=True)),
    **dict.fromkeys(_JOINT, Rule(math.share, _ORDER)),
    "Where": Rule(math.where, _ALL),
    **dict.fromkeys(("MatMul", "Gemm", "Conv"), Rule(math.layer, _ALL, makes=True)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), Rule(math.recurrent, frozenset({SCALE, SIGN}))),
    "Attention": Rule(math.attention, _FIXED, "counts the channels of its heads"),
    **dict.fromkeys(
        ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
        Rule(math.norm, _FIXED - {ROTATE}, "counts the channels, or has a gain for each", makes=True),
    ),
    "BatchNormalization": Rule(math.statistics, _FACTOR, makes=True),
    "InstanceNormalization": Rule(math.statistics, _FACTOR, makes=True),
    **dict.fromkeys(
        ("Softmax", "LogSoftmax", "LpNormalization"), Rule(math.summed_along, frozenset({PERMUTE}), "mixes channels")
    ),
    **dict.fromkeys(("ReduceMean", "ReduceSum"), Rule(math.reduce, _ALL)),
    **dict.fromkeys(("ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"), Rule(math.reduce, _POSITIVE)),
    **dict.fromkeys(("ReduceProd", "ReduceSumSquare", "ReduceLogSumExp"), Rule(math.reduce, _ORDER)),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool"), Rule(math.pool, _ALL)),
    **dict.fromkeys(("MaxPool", "GlobalMaxPool", "LpPool", "GlobalLpPool"), Rule(math.pool, _POSITIVE)),
    "Resize": Rule(math.pool, _ORDER),
    **dict.fromkeys(("Shape", "Size"), Rule(math.asks, _FIXED, "tells how many channels there are")),
    "Transpose": Rule(moving.rearranged, _ALL, makes=True),
    **dict.fromkeys(("Flatten", "Squeeze", "Unsqueeze"), Rule(moving.reshaped, _ALL, makes=True)),
    "Reshape": Rule(moving.reshaped, _FIXED, "may name the number of channels in a constant", makes=True),
    "Expand": Rule(moving.rearranged, _FIXED, "may name the number of channels in a constant", makes=True),
    "Concat": Rule(moving.joined, _ALL),
    "Split": Rule(moving.rearranged, _ALL, makes=True),
    "Slice": Rule(moving.rearranged, _ALL, makes=True),
    "Gather": Rule(moving.rearranged, _ALL, makes=True),
    "GatherND": Rule(moving.rearranged, _ALL, makes=True),
    "Pad": Rule(moving.rearranged, _ALL),
}  # fmt: skip


def survey(
    nodes: Iterable[ir.Node],
    move: Move = Move.PERMUTE,
    norms: Mapping[ir.Node, Norm] | None = None,
    *,
    through: bool = False,
    start: ir.Value | None = None,
) -> Survey:
    """The channels of some nodes of one graph, in their order.

    Args:
        nodes: The nodes. What a body of If, Loop or Scan reads stays in place.
        move: What is to be done to the channels.
        norms: Each node that is part of a norm site, and the site.
        through: Norm sites tie their output to their input (a norm turns with what it reads) instead of ending it.
        start: A value whose last axis gets numbers of its own.
    """
    found = Survey(move)
    if start is not None and (count := size(start, -1)) is not None:
        found.lanes[start] = along(found.fresh([count]), -1, len(dims(start) or ()))
    for node in nodes:
        norm = (norms or {}).get(node)
        if norm is None:
            _visit(found, node)
        elif norm.output in node.outputs:
            _pass_norm(found, norm, through)
    for value, lanes in found.lanes.items():
        found.stand(lanes)
        other = next((u.node for u in value.uses() if u.node.graph is not value.graph), None)
        if value.is_graph_output():
            found.hold(lanes, value, f"{value.name!r} is an output of its graph")
        elif other is not None:
            found.hold(lanes, other, "a body of If, Loop or Scan reads it")
    found.settle()
    return found


def _visit(found: Survey, node: ir.Node) -> None:
    """Hand channels on through one node, and number those that it makes."""
    op, numbered = node.op_type, found.numbered(node)
    rule = TABLE.get(op) if node.domain == "" else None
    outs: math.Outs = []
    if rule is None:
        outs = f"{op} acts on the channels in a way that is not known, one by one, or mixes them"
    elif found.move not in rule.moves:
        outs = f"{op} {rule.why}"
    elif found.move is SLICE and any(len(varying(lanes)) > 1 for lanes in numbered.values()):
        outs = f"{op} holds them on several axes at once"
    elif numbered or rule.makes:
        outs = rule.locate(found, node)
    if isinstance(outs, str):
        found.refused[node] = outs
        for lanes in numbered.values():
            found.hold(lanes, node, outs)
        return
    for out, made in zip(node.outputs, outs, strict=False):
        if made is not None and made.size > 1:
            found.put(out, slim(made))


def _pass_norm(found: Survey, norm: Norm, through: bool) -> None:
    """What a norm reads ends there, or goes on; what it gives is its own."""
    read, width = found.lanes.get(norm.input), size(norm.output, -1)
    if read is not None:
        found.sites.append((norm, "input", read))
    if through:
        made = read if read is not None and covers(read, norm.input, -1) else None
    else:
        made = along(found.fresh([width]), -1, len(dims(norm.output) or ())) if width is not None else None
    if made is not None:
        found.sites.append((norm, "output", made))
        found.put(norm.output, made)
