"""Rotations at run time: ``graphpress::Hadamard`` and ``graphpress::DualTurn`` nodes on edges of the graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit, opsets
from graphpress.ops import dual_turn, hadamard
from graphpress.ops.base import DOMAIN, Op, attach
from graphpress.passes.rotate.dual import DualTransform

Edge: TypeAlias = tuple[ir.Node, int]
"""A node and its input."""


@dataclass(eq=False)
class Online:
    """Writes the nodes; factors of one size are stored once in a graph.

    Attributes:
        model: Gets the operator's body with the first node.
        made: How many nodes were written.
    """

    model: ir.Model
    made: int = 0
    _factors: dict[tuple[object, ...], ir.Value] = field(default_factory=dict)

    def insert(self, edges: list[Edge], factors: tuple[np.ndarray, np.ndarray], origin: ir.Node) -> None:
        """Turn the last axis of the one value that ``edges`` read, for these readers alone."""
        graph, dtype = self._ready(edges, hadamard.OP)
        held = [self._factor(graph, f, dtype) for f in factors]
        stored = [np.asarray(edit.constant(v)) for v in held]
        fast = {f"fast_{n}": int(hadamard.is_sylvester(f)) for n, f in zip(("left", "right"), stored, strict=True)}
        self._put(edges, hadamard.OP, held, fast, origin)

    def insert_dual(self, edges: list[Edge], transform: DualTransform, origin: ir.Node) -> None:
        """Likewise, by two block rotations and an order between them."""
        graph, dtype = self._ready(edges, dual_turn.OP)
        first, second = (m.astype(dtype.numpy()) for m in (transform.first, transform.second))
        arrays = {"first": first, "order": transform.order.astype(np.int64), "second": second}
        held = [edit.add_const(graph, a, f"{origin.name}_{n}") for n, a in arrays.items()]
        self._put(edges, dual_turn.OP, held, {}, origin)

    def _ready(self, edges: list[Edge], op: Op) -> tuple[ir.Graph, ir.DataType]:
        """Where the constants go, and their type."""
        node, slot = edges[0]
        value = node.inputs[slot]
        assert value is not None and value.dtype is not None and isinstance(node.graph, ir.Graph)
        opsets.require(self.model, op.opset)
        attach(self.model, op)
        return node.graph, value.dtype

    def _put(self, edges: list[Edge], op: Op, held: list[ir.Value], attributes: dict[str, int], by: ir.Node) -> None:
        node, slot = edges[0]
        value = node.inputs[slot]
        assert value is not None and node.graph is not None
        first = min((n for n, _ in edges), key=list(node.graph).index)
        made = edit.new_node(op.name, [value, *held], attributes, before=first, domain=DOMAIN, origin=by)
        edit.like(made.outputs[0], value)
        for reader, at in edges:
            edit.set_input(reader, at, made.outputs[0])
        self.made += 1

    @staticmethod
    def gives(value: ir.Value) -> bool:
        """Whether a node that turns gives this value."""
        node = value.producer()
        return node is not None and node.domain == DOMAIN and node.op_type in (hadamard.OP.name, dual_turn.OP.name)

    def _factor(self, graph: ir.Graph, matrix: np.ndarray, dtype: ir.DataType) -> ir.Value:
        key = (id(graph), dtype, matrix.tobytes())
        if key not in self._factors:
            stored = ir.Tensor(matrix.astype(dtype.numpy()))
            self._factors[key] = edit.add_const(graph, stored, f"hadamard_{len(matrix)}")
        return self._factors[key]


def merged(factors: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The float64 matrix M with which the node turns a run: left Y right^T is x (left kron right)^T, x the run."""
    return np.asarray(np.kron(*factors).T)
