"""Static activations of 4 and 2 bits on ONNX Runtime: the same codes in 8 bits, on integer kernels."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import graphpress as gp
from graphpress.backends import ort
from graphpress.backends.ort import lower
from graphpress.recipe import Recipe
from graphpress.target import Target
from tests import kit
from tests.backends.given import parse
from tests.passes.quantizing import model as with_constants
from tests.passes.quantizing import normal

TARGET = Target.load("ort-cpu", "x86-64+vnni")
TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[5, 8] x, float s, float z) => (float[5, 8] y) {
    [q] c = QuantizeLinear(x, s, z) [d] y = DequantizeLinear(c, s, z)
}"""
ENDS = {ml_dtypes.uint4: (0, 15), ml_dtypes.int4: (-8, 7)}


@pytest.mark.parametrize("kind", [ml_dtypes.uint4, ml_dtypes.int4])
@pytest.mark.parametrize("zero", [0, 5])
def test_codes_are_the_same_to_the_bit(kind: type, zero: int) -> None:
    """Against division, rounding half to even and the ends of the codes in numpy, ties and far numbers among them."""
    scale, (low, high) = np.float32(0.3), ENDS[kind]
    steps = np.concatenate([np.arange(-18, 20) / 2, [1e6, -1e6]]).astype(np.float32)
    x = (steps * scale).reshape(5, 8)
    model = parse(TEXT, s=scale.reshape(()), z=np.array(zero, kind))
    lowered = lower(model, TARGET)
    wanted = (np.clip(np.rint(x / scale) + zero, low, high) - zero).astype(np.float32) * scale
    assert np.array_equal(kit.run(lowered, {"x": x})["y"], wanted)
    assert np.array_equal(kit.run(model, {"x": x})["y"], wanted)
    assert "INT4" not in str({v.dtype for n in lowered.graph for v in (*n.inputs, *n.outputs) if v is not None})


CONV = """g (float[N, 3, 8, 8] x, float[4, 3, 3, 3] w, float[4, 4, 1, 1] v) => (float[N, 4, 6, 6] y) {
  [first] a = Conv(x, w) r = Relu(a) [second] y = Conv(r, v)
}"""


@pytest.mark.parametrize("activation", ["uint4", "int4"])
def test_a_compiled_network_runs_on_integer_kernels(activation: str) -> None:
    """ONNX Runtime 1.32 refuses a QLinearConv of 4-bit codes, which it makes of such Q and DQ itself."""
    net = with_constants(CONV, {"w": normal(4, 3, 3, 3), "v": normal(4, 4, 1, 1)})
    recipe = Recipe.load({"name": "w4a4", "passes": [{"quantize": {
        "weight": "int4", "activation": activation, "activation_symmetric": activation == "int4",
        "kernels": "preferred",
    }}, {"recipe": "fold"}]})  # fmt: skip
    x = normal(40, 3, 8, 8)
    made, report = gp.compile(net, recipe, {"x": x}, gate=False, prove=False)
    assert all(s.scheme for s in report.sites)
    before, after = kit.run(net, {"x": x})["y"], ort.execute(made)({"x": x})["y"]
    assert np.square(before - after).sum() < 0.1 * np.square(before).sum()
    assert not {"UINT4", "INT4"} & {v.dtype.name for n in made.graph for v in n.outputs if v.dtype is not None}


def test_the_kernels_are_those_of_integers() -> None:
    """A Clip of floats in front of what quantizes keeps ONNX Runtime from making a QLinearConv."""
    net = with_constants(CONV, {"w": normal(4, 3, 3, 3), "v": normal(4, 4, 1, 1)})
    quantize = {"weight": "int4", "activation": "uint4", "kernels": "preferred", "weight_symmetric": False}
    recipe = Recipe.load({"name": "w4a4", "passes": [{"quantize": quantize}, {"recipe": "fold"}]})
    _, report = gp.compile(net, recipe, {"x": normal(40, 3, 8, 8)}, gate=False)
    assert report.audit is not None
    assert {s["kernel"] for s in report.audit["sites"]} == {"QLinearConv"}
