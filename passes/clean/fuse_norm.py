"""Find LayerNormalization and RMSNormalization where they are spelled out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import edit
from graphpress.graph.readers import only_reader
from graphpress.passes.clean.constants import graph_nodes, ints, number, static
from graphpress.types import Numerics

_LAYER_NORM_OPSET, _RMS_NORM_OPSET = 17, 23


@dataclass(frozen=True)
class _Normalized:
    """``x / sqrt(mean(x * x) + epsilon)``, of the centred ``x`` if ``centred``, over the last axis."""

    x: ir.Value
    epsilon: float
    centred: bool


@dataclass(frozen=True)
class FuseNorm(Pass):
    """Replace ``(x - mean) / sqrt(variance + epsilon) * scale [+ bias]`` over the last axis by LayerNormalization, and
    ``x / sqrt(mean(x * x) + epsilon) * scale`` by RMSNormalization.

    Only operators that the model's opset has are written: LayerNormalization since 17, RMSNormalization since 23.
    """

    name: ClassVar[str] = "fuse-norm"
    numerics: ClassVar[Numerics] = Numerics.CLOSE

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        for node in graph_nodes(model):
            if node.op_type != "Mul" or node.domain != "":
                continue
            for slot in (0, 1):
                found = _normalized(node.inputs[slot])
                if found is not None:
                    self._fuse(model, node, found, node.inputs[1 - slot], report)
                    break

    def _fuse(
        self, model: ir.Model, node: ir.Node, found: _Normalized, scale: ir.Value | None, report: PassReport
    ) -> None:
        op_type = "LayerNormalization" if found.centred else "RMSNormalization"
        needed = _LAYER_NORM_OPSET if found.centred else _RMS_NORM_OPSET
        if edit.opset(model) < needed:
            report.skip(node, f"{op_type} needs opset {needed}")
            return
        if not _is_vector(scale, found.x):
            report.skip(node, "the scale is no vector along the normalized axis")
            return
        last, operands = node, [found.x, scale]
        bias = _bias(node, found.x) if found.centred else None
        if bias is not None:
            last, operands = bias[0], [*operands, bias[1]]
        attributes = {"axis": -1, "epsilon": found.epsilon}
        made = edit.new_node(op_type, operands, attributes, before=last, origin=node)
        edit.like(made.outputs[0], last.outputs[0])
        inputs = list(last.inputs)
        edit.replace(last.outputs[0], made.outputs[0])
        edit.remove([last])
        edit.remove_unused(inputs)
        report.changed += 1


def _normalized(value: ir.Value | None) -> _Normalized | None:
    """Match ``d / root`` or ``d * (1 / root)``."""
    node = _sole(value)
    if node is None or node.op_type not in ("Div", "Mul"):
        return None
    for slot in (0, 1) if node.op_type == "Mul" else (0,):
        d, other = node.inputs[slot], node.inputs[1 - slot]
        root = _sole(other)
        if node.op_type == "Mul":
            root = _inverted(root)
        if d is not None and root is not None and root.op_type == "Sqrt":
            return _from_root(d, root)
    return None


def _inverted(node: ir.Node | None) -> ir.Node | None:
    """The node whose output ``node`` is the inverse of."""
    if node is not None and node.op_type == "Reciprocal":
        return _sole(node.inputs[0])
    if node is not None and node.op_type == "Div" and number(node, 0) == 1:
        return _sole(node.inputs[1])
    return None


def _from_root(d: ir.Value, root: ir.Node) -> _Normalized | None:
    add = _sole(root.inputs[0], "Add")
    if add is None:
        return None
    for slot in (0, 1):
        epsilon, mean = number(add, 1 - slot), _sole(add.inputs[slot], "ReduceMean")
        if epsilon is not None and mean is not None and _over_last_axis(mean) and _squares(mean.inputs[0], d):
            centred = _centred(d)
            return _Normalized(d if centred is None else centred, epsilon, centred is not None)
    return None


def _over_last_axis(mean: ir.Node) -> bool:
    source = mean.inputs[0]
    rank = len(source.shape) if source is not None and source.shape is not None else None
    axes = ints(mean, 1, "axes")
    return mean.attributes.get_int("keepdims", 1) == 1 and axes is not None and (
        axes == [-1] or (rank is not None and axes == [rank - 1])
    )  # fmt: skip


def _squares(value: ir.Value | None, d: ir.Value) -> bool:
    node = _sole(value)
    if node is None or node.inputs[0] is not d:
        return False
    return node.inputs[1] is d if node.op_type == "Mul" else node.op_type == "Pow" and number(node, 1) == 2


def _centred(d: ir.Value) -> ir.Value | None:
    """``x`` where ``d = x - mean(x)`` over the last axis."""
    node = d.producer()
    if node is None or node.op_type != "Sub" or node.domain != "" or node.inputs[1] is None:
        return None
    mean = node.inputs[1].producer()
    same = mean is not None and mean.op_type == "ReduceMean" and mean.inputs[0] is node.inputs[0]
    return node.inputs[0] if same and mean is not None and _over_last_axis(mean) else None


def _bias(node: ir.Node, x: ir.Value) -> tuple[ir.Node, ir.Value] | None:
    """The Add of a vector that alone reads ``node``."""
    found = only_reader(node.outputs[0], "Add")
    if found is None:
        return None
    add, slot = found
    bias = add.inputs[1 - slot]
    return (add, bias) if bias is not None and _is_vector(bias, x) else None


def _is_vector(value: ir.Value | None, x: ir.Value) -> bool:
    """A constant of one axis, as long as the last axis of ``x``."""
    tensor = edit.constant_tensor(value)
    return tensor is not None and x.shape is not None and len(x.shape) > 0 and static(tensor.shape) == (x.shape[-1],)


def _sole(value: ir.Value | None, op_type: str | None = None) -> ir.Node | None:
    """The maker of a value that has one reader only, if it is of that type."""
    node = value.producer() if value is not None else None
    if value is None or node is None or node.domain != "" or len(value.uses()) != 1 or value.is_graph_output():
        return None
    return node if op_type in (None, node.op_type) else None
