"""Operators of ai.onnx.ml, of which onnx infers nothing, have types; and layers behind them are compiled."""

import numpy as np
import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress.passes.clean.infer_shapes import InferShapes
from tests import kit

SOURCE = """<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 2]> g (float[N,2] x) => (float[N,2] y)
    <float[2,2] w = {1, 2, 3, 4}> {
        i = ai.onnx.ml.Imputer <imputed_value_floats = [0.0], replaced_value_float = -1.0> (x)
        s = ai.onnx.ml.Scaler <offset = [1.0, 2.0], scale = [2.0, 0.5]> (i)
        y = MatMul(s, w) }"""


def test_a_type_that_the_schema_fixes_or_an_input_has() -> None:
    model = kit.parse(SOURCE)
    for node in model.graph:
        node.outputs[0].type = None
    after, _ = kit.apply(model, InferShapes())
    assert [n.outputs[0].dtype for n in after.graph] == [ir.DataType.FLOAT] * 3


@pytest.mark.parametrize("recipe", ["w8a8", "w4a16-gptq"])
def test_a_layer_behind_them_is_quantized(recipe: str) -> None:
    x = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
    _, report = gp.compile(kit.parse(SOURCE), recipe, {"x": x}, gate=False, prove=False)
    assert [s.op for s in report.sites if s.scheme] == ["MatMul"]
