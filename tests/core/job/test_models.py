"""Graphs made in Python leave names out: they compile, and the graph that was given stays as it was."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

import graphpress as gp
from tests import kit


def nameless() -> ir.Model:
    weight = ir.Value(name="w", const_value=ir.tensor(np.eye(4, dtype=np.float32), name="w"))
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N", 4]))
    product = ir.node("MatMul", [x, weight])
    relu = ir.node("Relu", product.outputs)
    y = relu.outputs[0]
    y.name, y.type, y.shape = "y", x.type, x.shape
    graph = ir.Graph([x], [y], nodes=[product, relu], initializers=[weight], opset_imports={"": 21}, name="g")
    for node in graph:
        node.name = None
    product.outputs[0].name = None
    return ir.Model(graph, ir_version=10)


def test_a_graph_without_names_compiles_and_stays_as_it_was() -> None:
    model = nameless()
    made, report = gp.compile(model, "w8a16", gate=False)
    assert [node.name for node in model.graph] == [None, None] and [v.name for v in made.graph.outputs] == ["y"]
    assert len(report.passes) > 0
    x = np.array([[-1, 2, -3, 4]], np.float32)
    np.testing.assert_array_equal(gp.lower(model)({"x": x})["y"], np.maximum(x, 0))


def test_two_nodes_of_one_name_get_two() -> None:
    model = kit.parse("g (float[N] x) => (float[N] y) { h = Relu(x) y = Neg(h) }")
    for node in model.graph:
        node.name = "same"
    assert len(gp.inspect(model).ops) == 2
    made, _ = gp.compile(model, "clean", gate=False)
    assert len({node.name for node in made.graph}) == 2
