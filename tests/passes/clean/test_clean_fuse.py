"""Norm and Gelu fusions: every spelling is found, look-alikes are not, and the numbers stay."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.graph import edit
from graphpress.passes.clean.fuse_gelu import FuseGelu
from graphpress.passes.clean.fuse_norm import FuseNorm
from graphpress.passes.clean.infer_shapes import InferShapes
from tests import kit

HEAD = '<ir_version: 10, opset_import: ["" : {opset}]>\nf (float[2,3,4] x) => (float[2,3,4] y) '
NORM = """<float[4] g = {1.0, 2.0, 0.5, -1.0}, float[4] b = {0.1, 0.2, 0.3, 0.4}, float[3,1] wide = {1.0, 2.0, 3.0},
    float two = {2.0}, float one = {1.0}, float eps = {0.001}, int64[1] last = {-1},
    int64[1] second = {1}, int64[1] third = {2}>
    { h = Abs(x) """
SQUARES = ("q = Pow({d}, two)", "q = Mul({d}, {d})")
ROOTS = ("n = Div({d}, s)", "r = Reciprocal(s) n = Mul({d}, r)", "r = Div(one, s) n = Mul(r, {d})")


def norm(centred: bool, square: str, root: str, tail: str, *, axes: str = "last", opset: int = 23) -> ir.Model:
    d = "d" if centred else "h"
    mean = f"m = ReduceMean(h, {axes}) d = Sub(h, m)" if centred else ""
    middle = f"{square} v = ReduceMean(q, {axes}) e = Add(v, eps) s = Sqrt(e) {root}".replace("{d}", d)
    return kit.parse(f"{HEAD.format(opset=opset)}{NORM}{mean} {middle} {tail} }}")


@pytest.mark.parametrize(("square", "root"), list(itertools.product(SQUARES, ROOTS)))
@pytest.mark.parametrize(
    ("centred", "tail", "expected"),
    [
        (True, "y = Mul(n, g)", ["Abs", "LayerNormalization"]),
        (True, "k = Mul(g, n) y = Add(k, b)", ["Abs", "LayerNormalization"]),
        (True, "k = Mul(g, n) y = Add(k, h)", ["Abs", "LayerNormalization", "Add"]),  # a residual is no bias
        (False, "y = Mul(g, n)", ["Abs", "RMSNormalization"]),
        (False, "k = Mul(n, g) y = Add(b, k)", ["Abs", "RMSNormalization", "Add"]),
    ],
)
def test_spelled_out_norms_are_found(centred: bool, square: str, root: str, tail: str, expected: list[str]) -> None:
    model = norm(centred, square, root, tail)
    after, _ = kit.apply(model, InferShapes(), FuseNorm())
    assert kit.ops(after) == expected
    kit.assert_same_outputs(model, after, rtol=1e-5, atol=1e-6)


def test_the_last_axis_may_be_counted_from_the_front() -> None:
    model = norm(True, SQUARES[0], ROOTS[0], "y = Mul(n, g)", axes="third")
    after, _ = kit.apply(model, InferShapes(), FuseNorm())
    assert kit.ops(after) == ["Abs", "LayerNormalization"]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (norm(True, SQUARES[0], ROOTS[0], "y = Mul(n, wide)"), "no vector"),
        (norm(False, SQUARES[0], ROOTS[0], "y = Mul(n, g)", opset=21), "needs opset 23"),
        (norm(True, SQUARES[0], ROOTS[0], "y = Mul(n, g)", axes="second"), ""),
        (norm(True, SQUARES[0], ROOTS[0], "k = Mul(n, g) y = Add(k, v)"), ""),
        (norm(True, "q = Pow(d, one)", ROOTS[0], "y = Mul(n, g)"), ""),
    ],
)
def test_look_alikes_of_a_norm_stay(model: ir.Model, why: str) -> None:
    after, reports = kit.apply(model, InferShapes(), FuseNorm())
    assert kit.ops(after) == kit.ops(model)
    assert [s.why for s in reports[1].skips] == [] if not why else why in reports[1].skips[0].why


GELU = """<float half = {0.5}, float root2 = {1.4142135}, float invroot2 = {0.70710678}, float one = {1.0},
    float two = {2.0}, float c = {0.044715}, float s = {0.7978845608}, float cube = {3.0}, float wrong = {0.6}>
    { x = Neg(input) """
ERF = "z = Div(x, root2) e = Erf(z) a = Add(e, one)"
CUBIC = "p = Pow(x, cube) q = Mul(p, c) i = Add(x, q) j = Mul(s, i) t = Tanh(j) a = Add(one, t)"
SPELLINGS = {
    "halved last": (f"{ERF} m = Mul(x, a) y = Mul(m, half)", "none"),
    "halved first": (f"{ERF} k = Mul(half, x) y = Mul(k, a)", "none"),
    "bracket halved": (f"{ERF} k = Mul(a, half) y = Mul(k, x)", "none"),
    "divided by two": (f"{ERF} m = Mul(x, a) y = Div(m, two)", "none"),
    "multiplied inside": ("z = Mul(invroot2, x) e = Erf(z) a = Add(one, e) m = Mul(a, x) y = Mul(half, m)", "none"),
    "tanh": (f"{CUBIC} k = Mul(x, half) y = Mul(k, a)", "tanh"),
    "tanh by products": (
        "u = Mul(x, x) p = Mul(u, x) q = Mul(c, p) i = Add(x, q) j = Mul(i, s) t = Tanh(j) a = Add(t, one) "
        "k = Mul(half, x) y = Mul(k, a)",
        "tanh",
    ),
    "tanh with x taken out": (
        "u = Mul(x, x) q = Mul(u, c) i = Add(one, q) l = Mul(x, s) j = Mul(l, i) t = Tanh(j) a = Add(t, one) "
        "k = Mul(half, x) y = Mul(k, a)",
        "tanh",
    ),
}


def gelu(body: str, opset: int = 20) -> ir.Model:
    head = HEAD.format(opset=opset).replace("float[2,3,4] x", "float[2,3,4] input")
    return kit.parse(f"{head}{GELU}{body} }}")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_gelu_is_found(spelling: str) -> None:
    body, approximate = SPELLINGS[spelling]
    after, _ = kit.apply(gelu(body), FuseGelu())
    assert kit.ops(after) == ["Neg", "Gelu"]
    assert list(edit.nodes(after))[1].attributes.get_string("approximate") == approximate
    kit.assert_same_outputs(gelu(body), after, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        f"{ERF} m = Mul(x, a) y = Mul(m, wrong)",
        f"{ERF} m = Mul(z, a) y = Mul(m, half)",
        f"{ERF} m = Mul(x, a) k = Mul(m, half) y = Add(k, e)",
        f"{ERF.replace('root2', 'two')} m = Mul(x, a) y = Mul(m, half)",
        CUBIC.replace("cube", "two") + " k = Mul(x, half) y = Mul(k, a)",
    ],
)
def test_look_alikes_of_gelu_stay(body: str) -> None:
    after, _ = kit.apply(gelu(body), FuseGelu())
    assert kit.ops(after) == kit.ops(gelu(body))


def test_an_older_opset_is_not_raised() -> None:
    after, reports = kit.apply(gelu(SPELLINGS["halved last"][0], opset=17), FuseGelu())
    assert edit.opset(after) == 17
    assert "needs opset 20" in reports[0].skips[0].why
    assert np.all([n.op_type != "Gelu" for n in edit.nodes(after)])
