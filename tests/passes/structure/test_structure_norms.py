"""Norm sites: fused, spelled out in several ways, and what is none."""

from __future__ import annotations

import numpy as np
import pytest

from graphpress.passes.structure.layers.norms import find_norms
from graphpress.recipe import parse_passes
from tests import kit

CONSTANTS = """
    two = Constant <value = float {2.0}> ()
    one = Constant <value = float {1.0}> ()
    eps = Constant <value = float {1e-5}> ()
    axis = Constant <value_ints = [-1]> ()
    first = Constant <value_ints = [1]> ()
    gain = Constant <value = float[4] {1.0, 2.0, 3.0, 4.0}> ()
    bias = Constant <value = float[4] {0.0, 1.0, 0.0, 1.0}> ()
"""


def norms(body: str, opset: int = 23):
    head = f'<ir_version: 10, opset_import: ["" : {opset}]>\n'
    model = kit.parse(f"{head} g (float[2,3,4] x) => (float[2,3,4] y) {{ {CONSTANTS} {body} }}")
    return find_norms(kit.apply(model, *parse_passes("infer-shapes"))[0].graph)


FUSED = {
    "LayerNormalization": "y = LayerNormalization <axis = -1> (x, gain, bias)",
    "RMSNormalization": "y = RMSNormalization <axis = 2> (x, gain)",
}
MEAN = "s = Pow(x, two) m = ReduceMean(s, axis) e = Add(m, eps)"
SPELLED = {
    "div by sqrt": f"{MEAN} r = Sqrt(e) n = Div(x, r) y = Mul(n, gain)",
    "times reciprocal": f"{MEAN} r = Sqrt(e) i = Reciprocal(r) n = Mul(i, x) y = Mul(gain, n)",
    "one over": f"{MEAN} r = Sqrt(e) i = Div(one, r) n = Mul(x, i) y = Mul(n, gain)",
    "square by Mul": "s = Mul(x, x) m = ReduceMean(s, axis) e = Add(eps, m) r = Sqrt(e) n = Div(x, r) y = Mul(n, gain)",
    "sum of squares": "m = ReduceSumSquare(x, axis) e = Add(m, eps) r = Sqrt(e) n = Div(x, r) y = Mul(n, gain)",
    "length": "m = ReduceL2(x, axis) e = Max(m, eps) n = Div(x, e) y = Mul(n, gain)",
}
CENTRED = "c = ReduceMean(x, axis) d = Sub(x, c) s = Mul(d, d) m = ReduceMean(s, axis) e = Add(m, eps) r = Sqrt(e)"


@pytest.mark.parametrize("op", FUSED)
def test_fused(op: str) -> None:
    (norm,) = norms(FUSED[op])
    assert (norm.fused, norm.centred, norm.width) == (True, op == "LayerNormalization", 4)
    assert (norm.input.name, norm.output.name) == ("x", "y")
    np.testing.assert_array_equal(norm.gain_array(), [1, 2, 3, 4])
    assert (norm.bias_array() is None) == (op == "RMSNormalization")
    assert not norm.uniform()


@pytest.mark.parametrize("how", SPELLED)
def test_spelled_out(how: str) -> None:
    (norm,) = norms(SPELLED[how])
    assert (norm.fused, norm.centred, norm.input.name, norm.output.name) == (False, False, "x", "y")
    np.testing.assert_array_equal(norm.gain_array(), [1, 2, 3, 4])
    assert norm.bias is None and norm.centring is None


def test_spelled_out_with_mean_and_bias() -> None:
    (norm,) = norms(f"{CENTRED} n = Div(d, r) w = Mul(n, gain) y = Add(w, bias)")
    assert norm.centred and norm.centring is not None and norm.input.name == "x" and norm.output.name == "y"
    np.testing.assert_array_equal(norm.bias_array(), [0, 1, 0, 1])


def test_without_gain_it_is_uniform() -> None:
    (norm,) = norms(f"{MEAN} r = Sqrt(e) y = Div(x, r)")
    assert norm.gain is None and norm.uniform() and norm.output.name == "y"


def test_a_mean_that_others_read_is_not_taken_away() -> None:
    """Then what is squared is the input, and the Sub stays outside."""
    (norm,) = norms(f"{CENTRED} n = Div(d, r) y = Add(n, c)")
    assert not norm.centred and norm.input.name == "d"


@pytest.mark.parametrize(
    "body",
    [
        "y = LayerNormalization <axis = 1> (x, gain)",
        "y, mean = LayerNormalization <axis = -1> (x, gain) z = Identity(mean)",
        "s = Pow(x, two) m = ReduceMean(s, first) e = Add(m, eps) r = Sqrt(e) y = Div(x, r)",
        f"{MEAN} r = Sqrt(e) n = Div(r, x) y = Mul(n, gain)",
        f"{MEAN} r = Sqrt(e) t = Add(x, x) y = Div(t, r)",
        "s = Mul(x, x) m = ReduceMean(s, axis) z = Identity(s) e = Add(m, eps) r = Sqrt(e) y = Div(x, r)",
        "y = Div(x, two)",
    ],
)
def test_what_is_no_norm_over_the_last_axis(body: str) -> None:
    assert norms(body) == []
