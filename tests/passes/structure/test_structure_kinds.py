"""Layers by what they are for: the way that values take decides, not their names."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from graphpress.passes.structure.layers.kinds import kinds
from tests.passes.quantizing import model, normal

TEXT = """
g (float[N, 6, 16] x, float[N, 9, 16] c, float[16, 48] a, float[16, 16] ao, float[16, 16] b, float[16, 32] d,
   float[16, 16] bo, float[16, 64] u, float[64, 16] v, float[16, 4] h) => (float[N, 6, 4] y) {
    [one] p = MatMul(x, a)
    q, k, w = Split <axis = -1, num_outputs = 3> (p)
    kt = Transpose <perm = [0, 2, 1]> (k)
    s = MatMul(q, kt)
    r = Softmax <axis = -1> (s)
    m = MatMul(r, w)
    [two] o = MatMul(m, ao)
    x1 = Add(x, o)
    [three] q2 = MatMul(x1, b)
    [four] kv = MatMul(c, d)
    k2, w2 = Split <axis = -1, num_outputs = 2> (kv)
    kt2 = Transpose <perm = [0, 2, 1]> (k2)
    s2 = MatMul(q2, kt2)
    r2 = Softmax <axis = -1> (s2)
    m2 = MatMul(r2, w2)
    [five] o2 = MatMul(m2, bo)
    x2 = Add(x1, o2)
    [six] e = MatMul(x2, u)
    f = Relu(e)
    [seven] g2 = MatMul(f, v)
    x3 = Add(x2, g2)
    [eight] y = MatMul(x3, h)
}"""


@pytest.mark.parametrize("joined", [False, True], ids=["apart", "joined"])
def test_the_way_of_values_decides(joined: bool) -> None:
    text = TEXT
    if joined:  # both sequences are queries and keys: attention within one
        text = text.replace("[three] q2 = MatMul(x1, b)", "j = Concat <axis = 1> (x1, c)  [three] q2 = MatMul(j, b)")
        text = text.replace("MatMul(c, d)", "MatMul(j, d)").replace("o2 = MatMul(m2, bo)", "o3 = MatMul(m2, bo)")
        text = text.replace("x2 = Add", "o2 = Gather <axis = 1> (o3, first)  x2 = Add")
        text = text.replace("float[16, 4] h)", "float[16, 4] h, int64[6] first)")
    sizes = {"a": (16, 48), "ao": (16, 16), "b": (16, 16), "d": (16, 32), "bo": (16, 16), "u": (16, 64), "v": (64, 16)}
    weights = {n: normal(*s) for n, s in sizes.items()} | {"h": normal(16, 4)}
    made = model(text, weights | ({"first": np.arange(6)} if joined else {}))
    ShapeInferencePass()(made)
    other = "self-attention" if joined else "cross-attention"
    assert kinds(made.graph) == {
        "one": "self-attention", "two": "self-attention", "three": other, "four": other, "five": other,
        "six": "feed-forward", "seven": "feed-forward",
    }  # fmt: skip
