"""THE table: for each operator where channels are around it, and which moves it lets pass or takes up.

An operator that is not here keeps its channels as they are, with that as the reason.
"""

from __future__ import annotations

from graphpress.passes.structure.channels import arithmetic as math
from graphpress.passes.structure.channels import moving
from graphpress.passes.structure.channels.ask import OUT, Answer, Ask, Move, Rule

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
    **dict.fromkeys(("Mul", "Div"), Rule(math.product, _ALL)),
    **dict.fromkeys(_JOINT, Rule(math.share, _ORDER)),
    "Where": Rule(math.where, _ALL),
    **dict.fromkeys(("MatMul", "Gemm", "Conv"), Rule(math.layer, _ALL)),
    "Attention": Rule(math.attention, _FIXED, "counts the channels of its heads"),
    **dict.fromkeys(
        ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
        Rule(math.norm, _FIXED - {ROTATE}, "counts the channels, or has a gain for each"),
    ),
    "BatchNormalization": Rule(math.statistics, _FACTOR),
    "InstanceNormalization": Rule(math.statistics, _FACTOR),
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
    "Transpose": Rule(moving.rearranged, _ALL),
    **dict.fromkeys(("Flatten", "Squeeze", "Unsqueeze"), Rule(moving.reshaped, _ALL)),
    "Reshape": Rule(moving.reshaped, _FIXED, "may name the number of channels in a constant"),
    "Expand": Rule(moving.rearranged, _FIXED, "may name the number of channels in a constant"),
    "Concat": Rule(moving.rearranged, _ALL),
    "Split": Rule(moving.rearranged, _ALL),
    "Slice": Rule(moving.rearranged, _ALL),
    "Gather": Rule(moving.rearranged, _ALL),
    "GatherND": Rule(moving.rearranged, _ALL),
    "Pad": Rule(moving.rearranged, _ALL),
}  # fmt: skip


def answer(ask: Ask) -> Answer:
    """Where else the channels are, what changes along, or why the move does not pass this operator."""
    op = ask.node.op_type
    rule = TABLE.get(op) if ask.node.domain == "" else None
    if rule is None:
        return f"{op} acts on the channels in a way that is not known, one by one, or mixes them"
    if ask.move not in rule.moves:
        return f"{op} {rule.why}"
    if ask.port[0] == OUT and ask.port[1] and op != "Split":
        return f"it is a further output of {op}"
    if ask.move is SLICE and len(ask.axes) > 1:
        return f"{op} holds them on several axes at once"
    return rule.locate(ask)
