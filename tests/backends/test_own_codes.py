"""A weight that several products read, in sessions that move its codes to uint8 so that no sum saturates."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.backends import ort
from graphpress.backends.ort import own_codes
from tests import kit
from tests.passes.quantizing import model, normal

SHARED = {
    "code": "e = DequantizeLinear(w, s) f = DequantizeLinear(w, s)",
    "dequantized": "e = DequantizeLinear(w, s) f = Identity(e)",
    "channels": "e = DequantizeLinear <axis = 1> (w, c, o) f = Identity(e)",
}


def twice(kind: str) -> ir.Model:
    """Two static products of 16 x 16 with one weight, whose codes reach to -128."""
    body = SHARED[kind] if kind == "code" else SHARED[kind].partition(" f =")[0]
    second = "f" if kind == "code" else "e"
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
    g (float[N,16] x, int8[16,16] w, float s, float[16] c, int8[16] o, float t, uint8 z) => (float[N,16] y) {{
      q = QuantizeLinear(x, t, z) d = DequantizeLinear(q, t, z) {body} a = MatMul(d, e)
      p = QuantizeLinear(a, t, z) r = DequantizeLinear(p, t, z) y = MatMul(r, {second}) }}"""
    codes = np.random.default_rng(0).integers(-128, 128, (16, 16))
    made = model(
        text, {"w": codes, "s": 0.0103, "c": np.linspace(0.005, 0.02, 16), "o": np.zeros(16), "t": 0.0517, "z": 128}
    )
    for name in ("s", "c", "o"):
        if not made.graph.initializers[name].uses():
            made.graph.initializers.pop(name)
    return made


@pytest.mark.parametrize("kind", SHARED)
def test_a_shared_weight_runs_and_gives_the_same(kind: str) -> None:
    made, feeds = twice(kind), {"x": normal(4, 16)}
    np.testing.assert_allclose(ort.execute(made)(feeds)["y"], kit.run(made, feeds)["y"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", SHARED)
def test_each_reader_gets_codes_of_its_own_and_the_model_stays(kind: str) -> None:
    made, feeds = twice(kind), {"x": normal(4, 16)}
    before = made.clone()
    apart = own_codes.apart(made)
    kit.assert_same_structure(made, before)
    codes = [v for v in apart.graph.initializers.values() if v.dtype == ir.DataType.INT8]
    assert [len(v.uses()) for v in codes] == [1] * (4 if kind == "channels" else 2)  # zero points too
    assert all(len(n.outputs[0].uses()) == 1 for v in codes for n, _ in v.uses())
    np.testing.assert_array_equal(kit.run(apart, feeds)["y"], kit.run(made, feeds)["y"])
    assert own_codes.apart(apart) is apart
