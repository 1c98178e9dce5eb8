"""Blocks of a diffusion transformer behind AdaLN: a modulation of their own, and one that they share (adaLN-single)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from tests.passes.quantizing import model, normal

WIDTH = 32
OWN = """<ir_version: 11, opset_import: ["" : 23]>
g (float[N, 5, 32] x, float[N, 32] c, float[32, 32] first, float[32, 64] m, float[64] mb, float[32, 48] a,
   float[48] ab, float[48, 32] b, float[32] ones, float one, int64[1] axis) => (float[N, 5, 32] y) {
    h = MatMul(x, first)
    e = Gemm(c, m, mb)
    u = Unsqueeze(e, axis)
    shift, scale = Split <axis = -1, num_outputs = 2> (u)
    n = LayerNormalization <axis = -1, epsilon = 1e-06> (h, ones)
    k = Add(scale, one)
    p = Mul(n, k)
    q = Add(p, shift)
    r = MatMul(q, a)
    s = Add(r, ab)
    t = Relu(s)
    w = MatMul(t, b)
    y = Add(h, w)
}"""
SHARED = """<ir_version: 11, opset_import: ["" : 23]>
g (float[N, 5, 32] x, float[N, 32] c, float[32, 32] first, float[32, 64] m, float[64] mb, float[1, 1, 64] ta,
   float[1, 1, 64] tb, float[32, 32] a, float[32, 32] b, float[32] ones, float one, int64[1] axis)
    => (float[N, 5, 32] y) {
    h = MatMul(x, first)
    e = Gemm(c, m, mb)
    u = Unsqueeze(e, axis)
    ua = Add(u, ta)
    shift, scale = Split <axis = -1, num_outputs = 2> (ua)
    n = LayerNormalization <axis = -1, epsilon = 1e-06> (h, ones)
    k = Add(scale, one)
    p = Mul(n, k)
    q = Add(p, shift)
    r = MatMul(q, a)
    i = Add(h, r)
    ub = Add(u, tb)
    shiftb, scaleb = Split <axis = -1, num_outputs = 2> (ub)
    nb = LayerNormalization <axis = -1, epsilon = 1e-06> (i, ones)
    kb = Add(scaleb, one)
    pb = Mul(nb, kb)
    qb = Add(pb, shiftb)
    rb = MatMul(qb, b)
    y = Add(i, rb)
}"""


def block(text: str = OWN, seed: int = 0) -> ir.Model:
    """With shapes and seeded weights; two channels of the modulation are loud."""
    loud = np.where(np.arange(64) % 32 < 2, 30.0, 1.0)
    shapes = {
        "first": (32, 32), "m": (32, 64), "mb": (64,), "ta": (1, 1, 64), "tb": (1, 1, 64), "a": (32, 48), "ab": (48,),
        "b": (48, 32),
    }  # fmt: skip
    if text is SHARED:
        shapes |= {"a": (32, 32), "b": (32, 32)}
    arrays = {n: normal(*s, seed=seed + i) / 4 for i, (n, s) in enumerate(shapes.items()) if f"] {n}," in text}
    arrays |= {"m": arrays["m"] * loud, "ones": np.ones(32), "one": np.array(1.0), "axis": np.array([1])}
    made = model(text, arrays)
    ShapeInferencePass()(made)
    return made


def given(seed: int = 7, count: int = 8) -> dict[str, np.ndarray]:
    return {"x": normal(count, 5, WIDTH, seed=seed), "c": normal(count, WIDTH, seed=seed + 1)}
