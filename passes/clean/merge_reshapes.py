"""Fewer and plainer reshapes: computed targets become constants, chains become one node, transposes compose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import edit
from graphpress.graph.movement import TABLE, Way
from graphpress.passes.clean.constants import graph_nodes, ints
from graphpress.passes.clean.known_dims import known_dims
from graphpress.types import Numerics

_RESHAPES = tuple(op for op, way in TABLE.items() if way is Way.VIEW and op != "Identity")


@dataclass(frozen=True)
class MergeReshapes(Pass):
    """Give Reshape a constant target where all but one dimension are known or copied, and merge chains of Reshape,
    Flatten, Squeeze and Unsqueeze, and of Transpose.

    Needs shapes: run ``infer-shapes`` before. A dimension is copied where input and output name it alike.
    """

    name: ClassVar[str] = "merge-reshapes"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        for node in graph_nodes(model):
            if node.domain != "":
                continue
            if node.op_type == "Transpose":
                report.changed += _merge_transposes(node)
            elif node.op_type in _RESHAPES:
                report.changed += _merge_reshapes(node) or _fix_target(node)


def _merge_reshapes(node: ir.Node) -> bool:
    """Let a reshape read the origin of the chain that ends in it."""
    origin, result = node.inputs[0], node.outputs[0]
    while (before := _producer(origin, *_RESHAPES)) is not None:
        origin = before.inputs[0]
    if origin is None or origin is node.inputs[0]:
        return False
    target = ints(node, 1) if node.op_type == "Reshape" else None
    if target is None or 0 in target:
        # What is stated of a graph output is a promise that nobody keeps: the runtime only warns.
        target = None if result.is_graph_output() or result.shape is None else _target(origin.shape, list(result.shape))
    if target is None:
        return False
    _reshape(node, origin, target)
    return True


def _fix_target(node: ir.Node) -> bool:
    if node.op_type != "Reshape" or edit.is_constant(node.inputs[1]) or node.inputs[0] is None:
        return False
    dims = known_dims(node.inputs[1])
    target = None if dims is None else _target(node.inputs[0].shape, list(dims))
    if target is None:
        return False
    _reshape(node, node.inputs[0], target)
    return True


def _target(source: ir.Shape | None, result: Sequence[object]) -> list[int] | None:
    """The operand of a Reshape from ``source`` to ``result``: a size, 0 for a dimension of the same name, once -1."""
    if 0 in result:
        return None
    names = [d.value if isinstance(d, ir.SymbolicDim) else d for d in source or ()]
    target = []
    for i, dim in enumerate(d.value if isinstance(d, ir.SymbolicDim) else d for d in result):
        copied = isinstance(dim, str) and i < len(names) and names[i] == dim
        target.append(0 if copied else dim if isinstance(dim, int) else -1)
    return target if target.count(-1) < 2 else None


def _reshape(node: ir.Node, origin: ir.Value, target: list[int]) -> None:
    """Turn ``node`` into ``Reshape(origin, target)`` under its name."""
    assert isinstance(node.graph, ir.Graph)
    const = edit.add_const(node.graph, np.array(target, np.int64), f"{node.name}_shape")
    made = edit.new_node("Reshape", [origin, const], before=node, origin=node)
    edit.remove_unused(edit.supersede(node, made.outputs))


def _merge_transposes(node: ir.Node) -> bool:
    before = _producer(node.inputs[0], "Transpose")
    if before is None or not all("perm" in n.attributes for n in (node, before)):
        return False
    inner, outer = before.attributes["perm"].as_ints(), node.attributes["perm"].as_ints()
    node.attributes["perm"] = ir.AttrInt64s("perm", [inner[axis] for axis in outer])
    assert before.inputs[0] is not None
    edit.set_input(node, 0, before.inputs[0])
    edit.remove_unused(before.outputs)
    return True


def _producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.domain == "" and node.op_type in op_types else None
