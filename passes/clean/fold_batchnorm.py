"""Fold BatchNormalization, and constant channel-wise scales and shifts, into the linear operator before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import edit
from graphpress.graph.statistics import write_statistics
from graphpress.passes.clean import scale_shift
from graphpress.passes.clean.constants import graph_nodes
from graphpress.passes.clean.remove_identity import can_replace, forward
from graphpress.passes.clean.scale_shift import AffineLayer
from graphpress.types import Numerics

_Affine = tuple[np.ndarray, np.ndarray]  # scale and shift, float64, one element a channel


@dataclass(frozen=True)
class FoldBatchnorm(Pass):
    """Fold BatchNormalization at inference into Conv, ConvTranspose, Gemm or MatMul before it.

    The statistics that data-free methods need stay with the operator, see ``graphpress.statistics``.

    Attributes:
        scales: Fold Mul, Div, Add and Sub by a constant that varies along channels only, as well.
    """

    name: ClassVar[str] = "fold-batchnorm"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    scales: bool = True

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        for node in graph_nodes(model):
            if node.domain != "":
                continue
            why_not: str | None = ""
            if node.op_type == "BatchNormalization":
                why_not = _fold_batchnorm(node)
            elif self.scales and node.op_type in ("Add", "Sub", "Mul", "Div"):
                why_not = _fold_scale(node)
            if why_not is None:
                report.changed += 1
            elif why_not and node.op_type == "BatchNormalization":
                report.skip(node, why_not)


def _fold_batchnorm(node: ir.Node) -> str | None:
    found = _batchnorm(node)
    if isinstance(found, str):
        return found
    (scale, shift), seen = found
    rows = _as_rows(node.inputs[0])
    source = rows.inputs[0] if rows is not None else node.inputs[0]
    adds = _bias_add(source)
    target = scale_shift.linear(adds.inputs[0] if adds is not None else source)
    if isinstance(target, str):
        return target
    if len(scale) != target.channels or (target.channel_axis == -1 and not _is_matrix(node.inputs[0])):
        return f"its channels are not those of {target.node.name!r}"
    if rows is not None and not can_replace(node.outputs[0], rows.outputs[0]):
        return "its output is a graph output of another graph"
    if target.node.op_type == "MatMul":
        return _fold_into_matmul(node, target, (adds, rows), scale, shift)
    if not can_replace(node.outputs[0], target.node.outputs[0]):
        return "its output is a graph output of another graph"
    why_not = scale_shift.fold(target, scale, shift)
    if why_not is None:
        write_statistics(target.node, *seen)
        forward(node, target.node.outputs[0])
    return why_not


def _batchnorm(node: ir.Node) -> tuple[_Affine, _Affine] | str:
    """(scale, shift) of a BatchNormalization at inference and (mean, std) of its output, or why it is none."""
    if node.attributes.get_int("training_mode", 0) or any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        return "it is in training mode"
    if not node.attributes.get_int("spatial", 1):
        return "its statistics are not per channel (spatial=0)"
    parts = [edit.constant(v) for v in node.inputs[1:5]]
    if any(p is None for p in parts):
        return "its parameters are not constant"
    gamma, beta, mean, var = (p.astype(np.float64).ravel() for p in parts if p is not None)
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(var + node.attributes.get_float("epsilon", 1e-5))
        std = abs(scale) * np.sqrt(var)
    return (scale, beta - mean * scale), (beta, std)


def _as_rows(value: ir.Value | None) -> ir.Node | None:
    """The Reshape that makes one axis of all but the last of what a MatMul gives, with a bias or without."""
    node = value.producer() if value is not None else None
    if value is None or node is None or node.op_type != "Reshape" or node.inputs[0] is None:
        return None
    source = node.inputs[0]
    before, after = source.shape, value.shape
    alone = all(len(v.uses()) == 1 and not v.is_graph_output() for v in (value, source))
    if not alone or before is None or after is None or len(after) != 2 or not isinstance(after[-1], int):
        return None
    adds = _bias_add(source)
    made = adds.inputs[0] if adds is not None else source
    maker = made.producer() if made is not None else None
    return node if before[-1] == after[-1] and maker is not None and maker.op_type == "MatMul" else None


def _bias_add(value: ir.Value | None) -> ir.Node | None:
    """The Add of a constant between a MatMul and ``value``."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Add" or len(node.outputs[0].uses()) != 1 or node.outputs[0].is_graph_output():
        return None
    maker = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node if maker is not None and maker.op_type == "MatMul" and edit.is_constant(node.inputs[1]) else None


def _fold_into_matmul(
    node: ir.Node,
    target: AffineLayer,
    between: tuple[ir.Node | None, ir.Node | None],
    scale: np.ndarray,
    shift: np.ndarray,
) -> str | None:
    """A MatMul has no bias: the shift goes into the Add after it, which is made if there is none.

    Args:
        node: The BatchNormalization.
        target: The MatMul.
        between: The Add of a bias and the Reshape to rows between the two, where they are there.
        scale, shift: What it does to each channel.
    """
    adds, rows = between
    weight = edit.constant_tensor(target.node.inputs[1])
    assert weight is not None and isinstance(node.graph, ir.Graph)
    if adds is not None:
        old = edit.constant(adds.inputs[1])
        assert old is not None
        if old.ndim > 1 or old.size not in (1, target.channels):
            return f"the constant of {adds.name!r} is no bias"
        shift = old.astype(np.float64).ravel() * scale + shift
    why_not = scale_shift.fold(target, scale, np.zeros_like(shift))
    if why_not is not None:
        return why_not
    bias = edit.add_const(node.graph, shift.astype(weight.numpy().dtype), f"{node.name}.bias")
    made = edit.new_node("Add", [target.node.outputs[0], bias], before=rows or node, origin=adds or node)
    if rows is None:
        forward(node, edit.like(made.outputs[0], node.outputs[0]))
    else:
        source = rows.inputs[0]
        assert source is not None
        edit.set_input(rows, 0, edit.like(made.outputs[0], source))
        forward(node, rows.outputs[0])
    return None


def _is_matrix(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and len(value.shape) == 2


def _fold_scale(node: ir.Node) -> str | None:
    slot = 0 if edit.is_constant(node.inputs[1]) else 1
    source, const = node.inputs[slot], edit.constant(node.inputs[1 - slot])
    if const is None or (slot == 1 and node.op_type == "Div"):
        return "no operand is constant"
    target = scale_shift.linear(source)
    if isinstance(target, str):
        return target
    weight = target.node.inputs[1]
    if weight is not None and len(weight.uses()) > 1:
        return "the weight is shared, a copy would cost more than the operation saves"
    number = _per_channel(const, source, target)
    if number is None or not can_replace(node.outputs[0], target.node.outputs[0]):
        return "it is not channel-wise"
    scale, shift = _scale_and_shift(node.op_type, number, swapped=slot == 1)
    if target.node.op_type == "MatMul" and shift.any():
        return "a MatMul has no bias"
    why_not = scale_shift.fold(target, scale, shift)
    if why_not is None:
        forward(node, target.node.outputs[0])
    return why_not


def _scale_and_shift(op_type: str, number: np.ndarray, swapped: bool) -> _Affine:
    one, zero = np.ones_like(number), np.zeros_like(number)
    if op_type == "Add":
        return one, number
    if op_type == "Sub":
        return (-one, number) if swapped else (one, -number)
    with np.errstate(all="ignore"):
        return (number if op_type == "Mul" else one / number), zero


def _per_channel(const: np.ndarray, source: ir.Value | None, target: AffineLayer) -> np.ndarray | None:
    """The constant as a float64 vector over channels, if it varies along them only and adds no axes to the result."""
    rank = len(source.shape) if source is not None and source.shape is not None else None
    if rank is None:
        weight = edit.constant_tensor(target.node.inputs[1])
        rank = len(weight.shape) if weight is not None and target.channel_axis == 1 else None
    if const.size == 1 and (const.ndim == 0 or (rank is not None and const.ndim <= rank)):
        return np.full(target.channels, const.ravel()[0], np.float64)
    if rank is None or const.ndim > rank:
        return None
    full = const.reshape((1,) * (rank - const.ndim) + const.shape)
    axis = target.channel_axis % rank
    if full.size != full.shape[axis] or full.shape[axis] != target.channels:
        return None
    return full.astype(np.float64).ravel()
