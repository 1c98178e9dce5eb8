"""Constant nodes become initializers, so that every fixed tensor of a graph is found in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import edit
from graphpress.passes.clean.constants import static
from graphpress.types import Numerics


def freeze(scope: edit.Scope, value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
    """Let every use of ``value``, a node's output in ``scope``, read ``tensor``; returns the constant.

    The node stays, unread. In a graph the tensor becomes an initializer of the value's name, in a function, which has
    no initializers, a Constant node. A graph output keeps its public name behind an Identity.
    """
    node = value.producer()
    assert node is not None, "only a node's output can be frozen"
    shape, dtype = ir.Shape(static(tensor.shape)), ir.TensorType(tensor.dtype)
    if isinstance(scope, ir.Function):
        made = edit.new_node("Constant", [], {"value": tensor}, before=node, origin=node).outputs[0]
        made.shape, made.type = shape, dtype
        edit.replace(value, made)
        return made
    if value.name and not value.is_graph_output():
        const = ir.Value(name=value.name, shape=shape, type=dtype, const_value=tensor)
        value.name = None
        scope.register_initializer(const)
    else:
        const = edit.add_const(scope, tensor, value.name or "const")
    edit.replace(value, const)
    return const


@dataclass(frozen=True)
class LiftConstants(Pass):
    """Turn Constant nodes of graphs and subgraphs into initializers of the same name.

    Constants of functions stay (functions have no initializers), and so do those that are graph outputs.
    """

    name: ClassVar[str] = "lift-constants"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        for scope in edit.graphs(model):
            if isinstance(scope, ir.Function):
                continue
            for node in list(scope):
                if node.op_type == "Constant" and node.domain == "":
                    self._lift(scope, node, report)
        if report.changed:
            # Before IR version 4 an initializer had to be a graph input as well.
            model.ir_version = max(model.ir_version or 0, 4)

    def _lift(self, scope: ir.Graph, node: ir.Node, report: PassReport) -> None:
        value = node.outputs[0]
        tensor = edit.constant_tensor(value)
        if value.is_graph_output():
            return
        if tensor is None:
            report.skip(node, "holds no dense tensor")
            return
        freeze(scope, value, tensor)
        edit.remove([node])
        report.changed += 1
