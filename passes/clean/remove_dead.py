"""Remove what no output depends on: nodes, initializers, functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import edit
from graphpress.types import Numerics


@dataclass(frozen=True)
class RemoveDead(Pass):
    """Remove unread nodes and initializers of all graphs, and functions that nobody calls.

    Graph inputs stay, also unread ones: the signature is the caller's.
    """

    name: ClassVar[str] = "remove-dead"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        roots: list[edit.Scope] = [model.graph, *model.functions.values()]
        report.changed += sum(_sweep(root) for root in roots)
        called = _called(model)
        for key in [k for k in model.functions if k not in called]:
            del model.functions[key]
            report.changed += 1


def _sweep(scope: edit.Scope) -> int:
    """Remove dead nodes from the last to the first, so that one walk sees each node after its readers."""
    removed = 0
    for node in reversed(list(scope)):
        if not any(o.uses() or o.is_graph_output() for o in node.outputs):
            scope.remove(node, safe=True)
            removed += 1
        else:
            removed += sum(_sweep(body) for body in edit.subgraphs(node))
    if isinstance(scope, ir.Graph):
        removed += _sweep_initializers(scope)
    return removed


def _sweep_initializers(graph: ir.Graph) -> int:
    dead = [
        name
        for name, v in graph.initializers.items()
        if not v.uses() and not v.is_graph_output() and not v.is_graph_input()
    ]
    for name in dead:
        del graph.initializers[name]
    return len(dead)


def _called(model: ir.Model) -> set[ir.OperatorIdentifier]:
    """Functions reached from the main graph, through other functions too."""
    called: set[ir.OperatorIdentifier] = set()
    pending = [n.op_identifier() for n in _below(model.graph)]
    while pending:
        key = pending.pop()
        if key in model.functions and key not in called:
            called.add(key)
            pending.extend(n.op_identifier() for n in _below(model.functions[key]))
    return called


def _below(scope: edit.Scope) -> Iterable[ir.Node]:
    for node in scope:
        yield node
        for body in edit.subgraphs(node):
            yield from _below(body)
