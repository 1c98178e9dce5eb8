"""Which constants of a model training may change, and which it may not, each with the reason."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphpress.contracts import PassReport
from graphpress.graph import edit
from graphpress.graph.quantized import SCALE, decodes, encodes, holds_scale, readers
from graphpress.keys import ROLE, SPARSITY
from graphpress.ops.base import DOMAIN
from graphpress.passes.recover.rounding import grids
from graphpress.passes.recover.rounding.grids import QuantizedLayer

# Operators all of whose float initializers are weights, and those of which only some slots are.
_LAYERS = {
    "MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN", "LayerNormalization", "RMSNormalization",
    "GroupNormalization", "InstanceNormalization", "PRelu",
}  # fmt: skip
_SLOTS = {"BatchNormalization": (1, 2), "Gather": (0,)}  # statistics stay; of Gather the table
_DIALECT = {"ACM"}  # not Hadamard, whose factors stay orthogonal


@dataclass
class Trainable:
    """Names of initializers of the main graph, in its order.

    Attributes:
        weights: Float weights, biases, gains, tables.
        matrices: Those of them that have two axes or more.
        scales: Scales of Q/DQ.
        refused: Weights that cannot be trained, with the reason.
    """

    weights: list[str] = field(default_factory=list)
    matrices: list[str] = field(default_factory=list)
    scales: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def trainable_of(model: ir.Model) -> Trainable:
    """What of a model can be trained.

    A traced model says itself what its parameters are. Of another one it is what layers, norms, embeddings and
    additions of a bias read; tables of angles, masks and the like are left alone.
    """
    result = Trainable()
    narrow = {q.pair.encode.inputs[SCALE] for q in _narrow(model)}
    for name, value in model.graph.initializers.items():
        if value.is_graph_input() or value.dtype is None or not value.uses():
            continue
        if holds_scale(value):
            if value.dtype is ir.DataType.FLOAT and value not in narrow:  # whose limits move with the scale
                result.scales.append(name)
        elif (why := _refusal(value)) is not None:
            result.refused[name] = why
        elif value.dtype.is_floating_point() and _is_weight(value):
            result.weights.append(name)
            if len(_size(value)[1]) > 1:
                result.matrices.append(name)
    return result


def _refusal(value: ir.Value) -> str | None:
    """Why a weight cannot be trained; None where it can, or where the constant is no weight."""
    assert value.dtype is not None
    if not value.dtype.is_floating_point():
        codes = any(decodes(u.node) and u.idx == 0 for u in value.uses())
        is_weight = codes and any(node.op_type in _LAYERS | {"Gather"} and slot != 2 for node, slot in readers(value))
        return f"it is stored as {value.dtype.name}: put recover before the fold passes" if is_weight else None
    if value.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE) and _is_weight(value):
        return f"it is {value.dtype.name}: updates would be lost in rounding"
    return None


def _is_weight(value: ir.Value) -> bool:
    role = value.metadata_props.get(ROLE)
    if role is not None:
        return role == "parameter"
    return any(_trains(node, slot, value) for node, slot in readers(value))


def _trains(node: ir.Node, slot: int, value: ir.Value) -> bool:
    """Whether what ``node`` reads there is a weight of it."""
    size, shape = _size(value)
    if node.domain == DOMAIN and node.op_type in _DIALECT:
        return size > 1
    if node.domain:
        return False
    if node.op_type in _LAYERS:
        return True
    if node.op_type == "Add":  # a bias; a mask or a table of positions has more axes
        return size > 1 and sum(d != 1 for d in shape) == 1
    return slot in _SLOTS.get(node.op_type, ()) and (node.op_type != "Gather" or _by_input(node.inputs[1]))


def _size(value: ir.Value) -> tuple[int, tuple[int, ...]]:
    shape = value.shape.numpy() if value.shape is not None else ()
    return int(np.prod(shape)), tuple(shape)


def _by_input(value: ir.Value | None) -> bool:
    """Whether a value depends on the elements of an input, not on shapes alone."""
    pending, seen = [value], set[ir.Node]()
    while pending:
        value = pending.pop()
        if value is None:
            continue
        node = value.producer()
        if node is None:
            if value.is_graph_input() and not value.is_initializer():
                return True
        elif node.op_type not in ("Shape", "Size") and node not in seen:
            seen.add(node)
            pending.extend(node.inputs)
    return False


def zeros(model: ir.Model, names: list[str], keep_all: bool) -> dict[str, np.ndarray]:
    """Where weights have to stay 0, as boolean arrays of the graph's shape: True where an element is free.

    That is at the zeros of layers that say that they have a pattern; ``keep_all``: at the zeros of all weights.
    """
    result = {}
    for name in names:
        value = model.graph.initializers[name]
        if keep_all or any(SPARSITY in node.metadata_props for node, _ in readers(value)):
            array = edit.constant(value)
            assert array is not None
            if not array.all():
                result[name] = np.asarray(array != 0)
    return result


def limits(model: ir.Model) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(lowest, highest) of each element of the weights whose codes have fewer bits than the type that stores them."""
    result = {}
    for found in _narrow(model):
        low, high = (np.ascontiguousarray(end) for end in found.ends())
        result[found.layer.weight_value.name or ""] = low, high
    return result


def _narrow(model: ir.Model) -> list[QuantizedLayer]:
    return [q for q in grids.quantized_layers(model, PassReport()) if q.scheme.dtype != q.scheme.storage]


def bits(model: ir.Model) -> int:
    """Of the coarsest weights behind Q -> DQ; 32 where there are none."""
    found = [32, *(q.scheme.bits for q in grids.quantized_layers(model, PassReport()))]
    for node in edit.nodes(model):
        if encodes(node) and edit.is_constant(node.inputs[0]):
            dtype = node.outputs[0].dtype
            found.append(int(dtype.bitwidth) if dtype is not None else 8)
    return min(found)
