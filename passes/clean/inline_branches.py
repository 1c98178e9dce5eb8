"""Replace an If whose condition is constant by the branch that it takes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import edit
from graphpress.passes.clean.constants import graph_nodes
from graphpress.types import Numerics


@dataclass(frozen=True)
class InlineBranches(Pass):
    """Move the nodes and initializers of the branch that is always taken to where the If stands; drop the other one.

    Names stay unless another graph of the model uses the same one.
    """

    name: ClassVar[str] = "inline-branches"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        names = Counter(_value_names(model))
        # An outer graph comes before its inner ones, and what is moved joins the outer one: look again, as often as
        # there are Ifs, each of which goes once.
        for _ in range(sum(n.op_type == "If" for n in graph_nodes(model))):
            node = next((n for n in graph_nodes(model) if _is_decided(n)), None)
            if node is None:
                break
            condition = edit.constant(node.inputs[0])
            assert condition is not None
            _inline(node, node.attributes["then_branch" if condition.all() else "else_branch"].as_graph(), names)
            report.changed += 1


def _value_names(model: ir.Model) -> list[str | None]:
    found = []
    for scope in edit.graphs(model):
        found += [v.name for v in scope.inputs]
        found += [v.name for v in scope.initializers.values()] if isinstance(scope, ir.Graph) else []
        found += [o.name for n in scope for o in n.outputs]
    return found


def _is_decided(node: ir.Node) -> bool:
    return node.op_type == "If" and node.domain == "" and edit.is_constant(node.inputs[0])


def _inline(node: ir.Node, branch: ir.Graph, names: Counter[str | None]) -> None:
    scope = node.graph
    assert isinstance(scope, ir.Graph)
    inputs = list(node.inputs)
    results = list(branch.outputs)
    branch.outputs.clear()
    for value in list(branch.initializers.values()):
        del branch.initializers[value.name or ""]
        _rename(value, names, scope)
        scope.register_initializer(value)
    body = list(branch)
    branch.remove(body)
    scope.insert_before(node, body)
    for output in (o for n in body for o in n.outputs):
        _rename(output, names, scope)
    for old, new in zip(node.outputs, results, strict=True):
        edit.replace(old, new)
    edit.remove([node])
    edit.remove_unused(inputs)


def _rename(value: ir.Value, names: Counter[str | None], scope: edit.Scope) -> None:
    if names[value.name] > 1:
        names[value.name] -= 1
        value.name = edit.fresh_name(scope, value.name or "value")
