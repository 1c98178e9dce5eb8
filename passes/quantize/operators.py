"""What the operands of an operator are to quantization: slots, axes, data movement, clamps behind it. Node by node."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from graphpress.graph import edit
from graphpress.graph.movement import CLAMPS, Way, interval, movement, rearranges
from graphpress.graph.quantized import decodes
from graphpress.types import Granularity, Kind, Role, Scheme, per_channel, per_group

# Operators with weights: input slots that hold them.
WEIGHTS: dict[str, tuple[int, ...]] = {
    "Conv": (1,), "ConvTranspose": (1,), "Gemm": (1,), "MatMul": (1,), "Gather": (0,), "LSTM": (1, 2), "GRU": (1, 2),
}  # fmt: skip
# Operators with arithmetic of their own but no weights: they join when they stand among quantized ones.
LIGHT = frozenset(
    {"Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid", "Softmax", "Where"}
)
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
RECURRENT = frozenset({"LSTM", "GRU"})


def operands(node: ir.Node) -> dict[int, Role] | str:
    """The role of each operand of an operator with weights, or why it cannot be quantized.

    A computed tensor in a weight slot of MatMul and Gemm is an activation; a constant in an activation slot has the
    role of a weight.
    """
    slots = WEIGHTS[node.op_type]
    roles = {s: Role.WEIGHT if edit.is_constant(node.inputs[s]) else Role.ACTIVATION for s in slots}
    if node.op_type != "Gather":
        roles[0] = Role.WEIGHT if edit.is_constant(node.inputs[0]) else Role.ACTIVATION
    if set(roles.values()) == {Role.WEIGHT}:
        return "all operands are constant" if node.op_type != "Gather" else roles
    for slot, role in roles.items():
        if slot in slots and role is Role.ACTIVATION and (why := _computed(node, slot)):
            return why
    return next((why for slot in roles if (why := _unfit(node.inputs[slot], slot))), None) or roles


def _computed(node: ir.Node, slot: int) -> str | None:
    value = node.inputs[slot]
    assert value is not None
    maker = source = value.producer()
    if value.is_graph_input() and value.is_initializer():
        return f"weight {value.name!r} is a graph input, which a caller may override"
    while source is not None and rearranges(source) and (data := source.inputs[0]) is not None:
        source = data.producer()
    if decodes(source):
        return "it is quantized already"
    if maker is not None and maker.inputs and all(v is None or edit.is_constant(v) for v in maker.inputs):
        return f"the weight is computed from a constant by {maker.op_type}; fold constants first"
    return None if node.op_type in ("MatMul", "Gemm") else f"the weight (input {slot}) is computed"


def _unfit(value: ir.Value | None, slot: int) -> str | None:
    if value is None:
        return f"input {slot} is absent"
    if value.dtype not in (None, *FLOATS):
        return f"input {slot} is {value.dtype}, not float32, float16 or bfloat16"
    if edit.is_constant(value) and value.shape is not None and 0 in value.shape.numpy():
        return f"input {slot} has no elements"
    return None


def channel_axis(node: ir.Node, slot: int) -> int | None:
    """The axis of a weight that counts output channels (rows of an embedding); None where it has none."""
    rank = _rank(node, slot)
    axis = {
        "Conv": 0, "ConvTranspose": 1, "Gather": 0, "MatMul": rank - 1,
        "Gemm": 0 if edit.attribute(node, "transB", 0) else 1,
    }.get(node.op_type, 1)  # fmt: skip
    return axis if rank > max(axis, 1 if node.op_type == "MatMul" else 0) else None


def group_axis(node: ir.Node, slot: int) -> int | None:
    """The axis of a weight along which products are summed, to be cut into groups (an embedding's row)."""
    rank = _rank(node, slot)
    if node.op_type in RECURRENT:
        return 2
    axis = {
        "Conv": 1, "ConvTranspose": 0, "Gather": rank - 1, "MatMul": rank - 2,
        "Gemm": 1 if edit.attribute(node, "transB", 0) else 0,
    }.get(node.op_type, -1)  # fmt: skip
    return axis if rank > 1 and axis >= 0 else None


def granularities(node: ir.Node, slot: int, kind: Kind, group_size: int) -> list[Granularity]:
    """What was asked for, then what comes nearest: groups, channels, the whole tensor.

    Groups that are not smaller than the axis are channels.
    """
    value, found = node.inputs[slot], [Granularity()]
    assert value is not None and value.shape is not None
    if kind is not Kind.TENSOR and (axis := channel_axis(node, slot)) is not None:
        found.insert(0, per_channel(axis))
    if kind is Kind.GROUP and (axis := group_axis(node, slot)) is not None and value.shape.numpy()[axis] > group_size:
        found.insert(0, per_group(axis, group_size))
    return found


def batched_weights(node: ir.Node) -> bool:
    """Whether a constant operand is a batch of matrices; see ``Fact.FAILS_ON_BATCHED_WEIGHTS``."""
    return node.op_type == "MatMul" and _rank(node, 1) > 2 and edit.is_constant(node.inputs[1])


def vector_weights(node: ir.Node) -> bool:
    """Whether the constant operand of a product is a vector, which only float kernels and static ones take."""
    return node.op_type == "MatMul" and _rank(node, 1) == 1 and edit.is_constant(node.inputs[1])


def _rank(node: ir.Node, slot: int) -> int:
    value = node.inputs[slot]
    return len(value.shape) if value is not None and value.shape is not None else 0


def moved(node: ir.Node) -> bool:
    """Whether the node only moves computed elements of its first input, so that input and outputs share one scale."""
    found = movement(node)
    if found is None or found.way is Way.JOIN or node.op_type in CLAMPS or edit.is_constant(node.inputs[0]):
        return False
    return not any(found.literals.values())  # a fill of 0 is on every grid


def clamp_behind(node: ir.Node) -> ir.Node | None:
    """The Relu or Clip that alone reads the output of ``node``, if a range from ``lo <= 0`` to ``hi >= 0`` is left."""
    out = node.outputs[0]
    if out.is_graph_output() or len(out.uses()) != 1:
        return None
    ((user, slot),) = out.uses()
    limits = interval(user)
    inside = limits is not None and limits[0] <= 0.0 <= limits[1] and user.graph is node.graph
    return user if inside and slot == 0 else None


def settled(node: ir.Node, scheme: Scheme) -> ir.Value:
    """The value to quantize as the output of ``node``: behind the clamp that saturation can stand for, if any."""
    clamp = None if scheme.symmetric else clamp_behind(node)
    return node.outputs[0] if clamp is None else clamp.outputs[0]


def computed(node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    """(slot, value) of the inputs of a light operator that are data, constants included."""
    for slot, value in enumerate(node.inputs):
        if value is not None and not (node.op_type == "Where" and slot == 0):
            yield slot, value


def body(model: ir.Model) -> list[ir.Node]:
    """Nodes of the main graph and of the bodies in it, outer before inner; functions are left alone."""
    within = {id(n) for f in model.functions.values() for n in _below(f)}
    return [n for n in edit.nodes(model) if id(n) not in within]


def _below(scope: edit.Scope) -> Iterator[ir.Node]:
    for node in scope:
        yield node
        for graph in edit.subgraphs(node):
            yield from _below(graph)


def repeated(nodes: Iterable[ir.Node]) -> set[str]:
    """Names of the nodes in bodies that run any number of times (Loop, Scan)."""
    loops = [g for n in nodes if n.op_type in ("Loop", "Scan") for g in edit.subgraphs(n)]
    return {n.name or "" for graph in loops for n in _below(graph)}


def is_table(node: ir.Node) -> bool:
    """Whether a Gather reads rows of a constant matrix: an embedding."""
    table = node.inputs[0]
    return edit.is_constant(table) and table is not None and table.shape is not None and len(table.shape) == 2
