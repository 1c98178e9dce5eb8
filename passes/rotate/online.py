"""Rotations at run time: ``graphpress::Hadamard`` nodes on edges of the graph."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit, opsets
from graphpress.ops.base import DOMAIN, attach
from graphpress.ops.hadamard import OP, is_sylvester


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

    def insert(self, edges: list[tuple[ir.Node, int]], factors: tuple[np.ndarray, np.ndarray], origin: ir.Node) -> None:
        """Turn the last axis of the one value that ``edges`` (node, input) read, for these readers alone."""
        node, slot = edges[0]
        value = node.inputs[slot]
        assert value is not None and value.dtype is not None and isinstance(node.graph, ir.Graph)
        opsets.require(self.model, OP.opset)
        attach(self.model, OP)
        inputs = [value, *(self._factor(node.graph, f, value.dtype) for f in factors)]
        stored = [np.asarray(edit.constant(v)) for v in inputs[1:]]
        fast = {f"fast_{n}": int(is_sylvester(f)) for n, f in zip(("left", "right"), stored, strict=True)}
        first = min((n for n, _ in edges), key=list(node.graph).index)
        made = edit.new_node(OP.name, inputs, fast, before=first, domain=DOMAIN, origin=origin)
        edit.like(made.outputs[0], value)
        for reader, at in edges:
            edit.set_input(reader, at, made.outputs[0])
        self.made += 1

    @staticmethod
    def gives(value: ir.Value) -> bool:
        """Whether a node that turns gives this value."""
        node = value.producer()
        return node is not None and node.domain == DOMAIN and node.op_type == OP.name

    def _factor(self, graph: ir.Graph, matrix: np.ndarray, dtype: ir.DataType) -> ir.Value:
        key = (id(graph), dtype, matrix.tobytes())
        if key not in self._factors:
            stored = ir.Tensor(matrix.astype(dtype.numpy()))
            self._factors[key] = edit.add_const(graph, stored, f"hadamard_{len(matrix)}")
        return self._factors[key]


def merged(factors: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The float64 matrix M with which the node turns a run: left Y right^T is x (left kron right)^T, x the run."""
    return np.asarray(np.kron(*factors).T)
