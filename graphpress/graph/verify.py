"""Structural checks on a model, run after every pass: scoping, names, order, opset imports, dialect operators.

O(nodes + edges). Subgraphs see the values of the graphs around them; functions see only their own.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NoReturn

import onnx_ir as ir

from graphpress.errors import GraphpressError, VerifyError
from graphpress.graph import edit, pattern, text


def check(model: ir.Model) -> None:
    """Raise on the first broken rule.

    Raises:
        VerifyError: Names the node or value and the rule, with a window of the graph around it as a note.
    """
    _Checker(model).run()


class _Checker:
    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.node_names: dict[str, ir.Node] = {}
        self.domains = set(model.opset_imports)
        self.functions = set(model.functions)

    def run(self) -> None:
        self.scope(self.model.graph, {})
        for function in self.model.functions.values():
            self.domains = set(self.model.opset_imports) | set(function.opset_imports)
            self.node_names = {}
            self.scope(function.graph, {})  # its nodes call the graph inside their own

    def scope(self, graph: edit.Scope, outer: dict[str, ir.Value]) -> None:
        defined: dict[str, ir.Value] = dict(outer)
        visible = _visible(defined)
        for value in self.starts(graph):
            self.define(value, defined, visible, None)
        for node in graph:
            self.node(node, graph, defined, visible)
        for output in graph.outputs:
            if id(output) not in visible:
                self.fail(f"output {output.name!r} of graph {graph.name!r} is produced by no node of it", None)

    def starts(self, graph: edit.Scope) -> Iterable[ir.Value]:
        yield from graph.inputs
        if isinstance(graph, ir.Graph):
            for key, value in graph.initializers.items():
                if key != value.name:
                    self.fail(f"initializer {value.name!r} is registered as {key!r}", None)
                if value.const_value is None:
                    self.fail(f"initializer {key!r} has no tensor", None)
                if not value.is_graph_input():
                    yield value

    def define(self, value: ir.Value, defined: dict[str, ir.Value], visible: set[int], node: ir.Node | None) -> None:
        if not value.name:
            if value.uses() or value.is_graph_output():
                self.fail("a value in use has no name", node)
            return
        if value.name in defined:
            self.fail(f"value {value.name!r} is defined twice", node)
        defined[value.name] = value
        visible.add(id(value))

    def node(self, node: ir.Node, graph: edit.Scope, defined: dict[str, ir.Value], visible: set[int]) -> None:
        if node.graph is not (graph.graph if isinstance(graph, ir.Function) else graph):
            self.fail("the node says that it belongs to another graph", node)
        if not node.name or self.node_names.setdefault(node.name, node) is not node:
            self.fail("the node has no name" if not node.name else "two nodes have this name", node)
        if node.domain not in self.domains and node.op_identifier() not in self.functions:
            self.fail(f"no opset is imported for domain {node.domain!r}", node)
        for i, value in enumerate(node.inputs):
            if value is not None and id(value) not in visible:
                self.fail(f"input {i} ({value.name!r}) is not defined before it in its scope", node)
        for body in edit.subgraphs(node):
            self.scope(body, defined)
        if node.domain == "graphpress":
            self.dialect(node)
        if (why := pattern.broken(node)) is not None:
            self.fail(why, node)
        for value in node.outputs:
            self.define(value, defined, visible, node)

    def dialect(self, node: ir.Node) -> None:
        op = _dialect().get(node.op_type)
        if op is None:
            self.fail(f"graphpress::{node.op_type} is not an operator of the dialect", node)
        try:
            op.verify(node)
        except GraphpressError as e:
            self.fail(str(e), node)

    def fail(self, what: str, node: ir.Node | None) -> NoReturn:
        error = VerifyError(what, where=f"node {node.name!r} ({node.op_type})" if node else "graph")
        if node is not None:
            error.add_note(text.window(node))
        raise error


def _visible(defined: dict[str, ir.Value]) -> set[int]:
    return {id(v) for v in defined.values()}


@functools.cache
def _dialect() -> dict[str, Any]:
    from graphpress import catalog

    return catalog.ops()
