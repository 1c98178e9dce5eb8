"""Feed-forward blocks and projections by data flow."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.passes.structure.layers import ffn
from tests.passes.quantizing import model, normal

ERF = """
d = Div(h, root) e = Erf(d) f = Add(e, one) g = Mul(h, f) a = Mul(g, half)
"""
TANH = """
c = Pow(h, three) d = Mul(c, small) e = Add(h, d) f = Mul(e, slope) t = Tanh(f) u = Add(t, one)
g = Mul(h, half) a = Mul(g, u)
"""
ACTIVATIONS = {
    "relu": ("a = Relu(h)", "relu"),
    "gelu": ("a = Gelu(h)", "gelu"),
    "tanh gelu": ('a = Gelu <approximate="tanh"> (h)', "gelu-tanh"),
    "silu": ("s = Sigmoid(h) a = Mul(s, h)", "silu"),
    "erf": (ERF, "gelu"),
    "tanh": (TANH, "gelu-tanh"),
}
NUMBERS = {
    "root": np.float32(np.sqrt(2)), "one": np.float32(1), "half": np.float32(0.5), "three": np.float32(3),
    "small": np.float32(0.044715), "slope": np.float32(np.sqrt(2 / np.pi)),
}  # fmt: skip
WEIGHTS = {"w1": normal(4, 6), "w2": normal(6, 4), "wg": normal(4, 6), "b1": normal(6), "b2": normal(4)}


def graph(body: str, outputs: str = "float[N,4] y") -> ir.Model:
    consts = {n: a for n, a in (WEIGHTS | NUMBERS).items() if f"{n})" in body or f"{n}," in body}
    inputs = ", ".join(f"float{list(a.shape) if a.shape else ''} {n}" for n, a in consts.items())
    return model(f"g (float[N,4] x, {inputs}) => ({outputs}) {{ {body} }}", consts)


@pytest.mark.parametrize("form", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_plain_block(form: str, bias: bool) -> None:
    text, kind = ACTIVATIONS[form]
    first = "p = MatMul(x, w1) h = Add(p, b1)" if bias else "h = MatMul(x, w1)"
    found = ffn.layer_blocks(graph(f"{first} {text} q = MatMul(a, w2) y = Add(q, b2)").graph)
    (block,) = found.blocks
    assert (block.activation, block.width, block.hidden, block.out) == (kind, 4, 6, 4)
    assert (block.input.name, block.hidden_value.name, block.output.name) == ("x", "a", "y")
    assert not block.residual
    assert not found.projections
    assert not found.refused


@pytest.mark.parametrize("form", ACTIVATIONS)
def test_gated_block_on_a_residual_branch(form: str) -> None:
    text, kind = ACTIVATIONS[form]
    body = f"h = MatMul(x, w1) v = MatMul(x, wg) {text} m = Mul(v, a) q = MatMul(m, w2) y = Add(x, q)"
    (block,) = ffn.layer_blocks(graph(body).graph).blocks
    assert block.activation == kind
    assert block.gate is not None
    np.testing.assert_array_equal(block.gate.weight(), WEIGHTS["wg"].T)
    np.testing.assert_array_equal(block.up.weight(), WEIGHTS["w1"].T)
    assert block.residual


REFUSED = {
    "an output": ("h = MatMul(x, w1) a = Relu(h) y = MatMul(a, w2)", "float[N,4] y, float[N,6] a",
     "output of the graph"),
    "read elsewhere": (
        "h = MatMul(x, w1) a = Relu(h) q = MatMul(a, w2) r = ReduceSum(h) y = Add(q, r)", "float[N,4] y", "elsewhere",
    ),
    "two inputs": (
        "z = Exp(x) h = MatMul(x, w1) v = MatMul(z, wg) a = Relu(h) m = Mul(a, v) y = MatMul(m, w2)", "float[N,4] y",
        "read different values",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_looks_like_one_says_why_it_is_none(case: str) -> None:
    body, outputs, why = REFUSED[case]
    found = ffn.layer_blocks(graph(body, outputs).graph)
    assert not found.blocks
    assert len(found.refused) == 1
    assert why in found.refused[0][1]


def test_other_functions_are_no_activation() -> None:
    found = ffn.layer_blocks(graph("h = MatMul(x, w1) a = Exp(h) y = MatMul(a, w2)").graph)
    assert not found.blocks
    assert not found.refused


def test_projections_stand_on_residual_branches() -> None:
    """A projection whose input is carried around it counts, one on the trunk does not, nor one of a block."""
    weights = {
        "wq": normal(4, 4),
        "wo": normal(4, 4, seed=1),
        "wh": normal(4, 3),
        "w1": normal(4, 6),
        "w2": normal(6, 4),
    }
    text = """g (float[N,4] x, float[4,4] wq, float[4,4] wo, float[4,3] wh, float[4,6] w1, float[6,4] w2)
      => (float[N,3] y) { q = MatMul(x, wq) s = Softmax(q) o = MatMul(s, wo) r = Add(o, x)
      h = MatMul(r, w1) a = Relu(h) d = MatMul(a, w2) t = Add(r, d) y = MatMul(t, wh) }"""
    found = ffn.layer_blocks(model(text, weights).graph)
    assert [p.output.name for p in found.projections] == ["q", "o"]
    assert [b.output.name for b in found.blocks] == ["d"]


def test_real_models(zoo) -> None:
    import graphpress as gp

    found = ffn.layer_blocks(gp.load(zoo / "llm/codelm/codelm.onnx").graph)
    assert [(b.activation, b.gate is not None, b.hidden, b.residual) for b in found.blocks] == [
        ("silu", True, 704, True)
    ] * 6
    assert len(found.projections) == 24
    assert not ffn.layer_blocks(gp.load(zoo / "cifar10/resnet20.onnx").graph).projections
