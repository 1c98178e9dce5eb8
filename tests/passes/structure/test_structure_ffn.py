"""Feed-forward blocks and projections by data flow."""

from __future__ import annotations

import itertools
import re

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.backends import reference
from graphpress.passes.clean.infer_shapes import InferShapes
from graphpress.passes.structure.layers import ffn
from tests import kit
from tests.passes.quantizing import model, normal

ERF = """
d = Div(h, root) e = Erf(d) f = Add(e, one) g = Mul(h, f) a = Mul(g, half)
"""
TANH = """
c = Pow(h, three) d = Mul(c, small) e = Add(h, d) f = Mul(e, slope) t = Tanh(f) u = Add(t, one)
g = Mul(h, half) a = Mul(g, u)
"""
CUBED = """
b = Mul(h, h) c = Mul(b, h) d = Mul(c, small) e = Add(h, d) f = Mul(e, slope) t = Tanh(f) u = Add(t, one)
g = Mul(half, h) a = Mul(g, u)
"""
ACTIVATIONS = {
    "relu": ("a = Relu(h)", "relu"),
    "gelu": ("a = Gelu(h)", "gelu"),
    "tanh gelu": ('a = Gelu <approximate="tanh"> (h)', "gelu-tanh"),
    "silu": ("s = Sigmoid(h) a = Mul(s, h)", "silu"),
    "erf": (ERF, "gelu"),
    "tanh": (TANH, "gelu-tanh"),
    "erf, halved first": ("g = Mul(h, half) d = Div(h, root) e = Erf(d) f = Add(e, one) a = Mul(g, f)", "gelu"),
    "cube as products": (CUBED, "gelu-tanh"),
    "silu as a quotient": ("n = Neg(h) e = Exp(n) u = Add(e, one) a = Div(h, u)", "silu"),
    "swish": ("a = Swish(h)", "silu"),
    "quick gelu": ("t = Mul(h, steep) s = Sigmoid(t) a = Mul(h, s)", "quick-gelu"),
    "quick gelu, swish": ("a = Swish <alpha = 1.702> (h)", "quick-gelu"),
    "relu as clip": ("a = Clip(h, zero)", "relu"),
    "relu as max": ("a = Max(zero, h)", "relu"),
    "squared relu": ("r = Relu(h) a = Mul(r, r)", "relu-squared"),
    "squared relu, power": ("r = Relu(h) a = Pow(r, two)", "relu-squared"),
    "plain tanh": ("a = Tanh(h)", "tanh"),
    "plain sigmoid": ("a = Sigmoid(h)", "sigmoid"),
    "hard swish": ("a = HardSwish(h)", "hard-swish"),
    "hard swish, spelled out": ("s = HardSigmoid <alpha = 0.16666667> (h) a = Mul(h, s)", "hard-swish"),
    "dropout": ("r = Relu(h) d = Dropout(r) a = Identity(d)", "relu"),
}
NUMBERS = {
    "root": np.float32(np.sqrt(2)), "one": np.float32(1), "half": np.float32(0.5), "three": np.float32(3),
    "yes": np.array(True), "small": np.float32(0.044715), "slope": np.float32(np.sqrt(2 / np.pi)),
    "steep": np.float32(1.702), "zero": np.float32(0), "two": np.float32(2),
}  # fmt: skip
WEIGHTS = {"w1": normal(4, 6), "w2": normal(6, 4), "wg": normal(4, 6), "b1": normal(6), "b2": normal(4)}


def kind(array: np.ndarray) -> str:
    return {"i": "int64", "b": "bool"}.get(array.dtype.kind, "float")


def graph(body: str, outputs: str = "float[N,4] y") -> ir.Model:
    consts = {n: a for n, a in (WEIGHTS | NUMBERS).items() if re.search(rf"\b{n}[,)]", body)}
    inputs = ", ".join(f"{kind(a)}{list(a.shape) if a.shape else ''} {n}" for n, a in consts.items())
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


@pytest.mark.parametrize(
    "text",
    [
        "a = Exp(h)",
        "t = Mul(h, two) s = Sigmoid(t) a = Mul(h, s)",
        "r = Relu(h) a = Pow(r, three)",
        "t = Tanh(h) a = Mul(h, t)",
        "a = Clip(h, zero, one)",
        "d = Dropout(h, half, yes) a = Relu(d)",
        "t = Transpose(h) r = Relu(t) a = Transpose(r)",
    ],
)
def test_other_functions_are_no_activation(text: str) -> None:
    found = ffn.layer_blocks(graph(f"h = MatMul(x, w1) {text} y = MatMul(a, w2)").graph)
    assert not found.blocks
    assert not found.refused


FUSED = {
    "split": "s, t = Split <axis = -1, num_outputs = 2> (f) a = Sigmoid(s) b = Mul(s, a) m = Mul(b, t)",
    "split, the second is activated": "t, s = Split <axis = 1> (f, six) a = Sigmoid(s) b = Mul(s, a) m = Mul(t, b)",
    "slices": "s = Slice(f, i0, i6, i1) t = Slice(f, i6, i12, i1) a = Sigmoid(s) b = Mul(s, a) m = Mul(b, t)",
    "every other": """s = Slice(f, i0, i12, i1, i2) t = Slice(f, i1, i12, i1, i2)
      a = Sigmoid(s) b = Mul(s, a) m = Mul(b, t)""",
    "gathered": """s = Gather <axis = 1> (f, odd) t = Gather <axis = 1> (f, even)
      a = Sigmoid(s) b = Mul(s, a) m = Mul(b, t)""",
}
PLACES = {
    "six": np.array([6, 6]), "odd": np.arange(1, 12, 2), "even": np.arange(0, 12, 2),
    **{f"i{i}": np.array([i]) for i in (0, 1, 2, 6, 12)},
}  # fmt: skip


def fused(body: str, outputs: str = "float[N,4] y") -> ir.Model:
    """x -> wf [4, 12] -> the body -> m, that w2 reads."""
    held: dict[str, np.ndarray] = {"wf": normal(4, 12, seed=3), "bf": normal(12, seed=4), "w2": normal(6, 4, seed=5)}
    held |= {n: a for n, a in PLACES.items() if re.search(rf"\b{n}[,)]", body)}
    shapes = ", ".join(f"{kind(a)}{list(a.shape)} {n}" for n, a in held.items())
    text = f"""g (float[N,4] x, {shapes}) => ({outputs}) {{
      p = MatMul(x, wf) f = Add(p, bf) {body} y = MatMul(m, w2) }}"""
    return kit.apply(model(text, held), InferShapes())[0]


@pytest.mark.parametrize("form", FUSED)
def test_a_gated_block_of_one_fused_matrix(form: str) -> None:
    """Its two layers, each as rows, give what the graph computes before the activation."""
    made = fused(FUSED[form])
    (block,) = ffn.layer_blocks(made.graph).blocks
    assert (block.activation, block.width, block.hidden, block.out) == ("silu", 4, 6, 4)
    assert block.gate is not None
    x = normal(5, 4, seed=8)
    seen = reference.execute(made, ["s", "t"])({"x": x})
    for part, name in ((block.up, "s"), (block.gate, "t")):
        assert part.shape == (6, 4)
        np.testing.assert_allclose(x @ part.weight().T + part.bias(), seen[name], rtol=0, atol=1e-6)


def test_a_fused_layer_whose_other_part_is_read_elsewhere_is_none() -> None:
    body = "s, t = Split <axis = -1, num_outputs = 2> (f) m = Relu(s) z = Exp(t)"
    found = ffn.layer_blocks(fused(body, "float[N,4] y, float[N,6] z").graph)
    assert not found.blocks
    assert [why for _, why in found.refused] == ["its inner value 't' is an output of the graph"] or [
        "read elsewhere" in why for _, why in found.refused
    ] == [True]


def test_fused_query_key_value_is_no_block() -> None:
    body = """q, k, v = Split <axis = -1, num_outputs = 3> (f) kt = Transpose(k) s = MatMul(q, kt) r = Softmax(s)
      o = MatMul(r, v)"""
    weights = {"wf": normal(4, 12), "wo": normal(4, 4)}
    text = f"""g (float[N,4] x, float[4,12] wf, float[4,4] wo) => (float[N,4] y) {{
      f = MatMul(x, wf) {body} y = MatMul(o, wo) }}"""
    found = ffn.layer_blocks(kit.apply(model(text, weights), InferShapes())[0].graph)
    assert not found.blocks
    assert not found.refused


CONV1D = """v = Reshape(x, flat) h = Gemm(v, w1, b1) t = Reshape(h, deep6) a = Relu(t) u = Reshape(a, flat6)
  d = Gemm(u, w2, b2) y = Reshape(d, deep4)"""


def reshaped(body: str, shape: str) -> ir.Model:
    held: dict[str, np.ndarray] = {n: WEIGHTS[n] for n in ("w1", "w2", "b1", "b2")}
    held |= {
        n: np.array(s) for n, s in (("flat", [-1, 4]), ("flat6", [-1, 6]), ("deep6", [2, 3, 6]), ("deep4", [2, 3, 4]))
    }
    held = {n: a for n, a in held.items() if re.search(rf"\b{n}[,)]", body)}
    shapes = ", ".join(f"{kind(a)}{list(a.shape)} {n}" for n, a in held.items())
    return kit.apply(model(f"g (float[2,3,4] x, {shapes}) => (float{shape} y) {{ {body} }}", held), InferShapes())[0]


@pytest.mark.parametrize(
    ("body", "source"),
    [
        (CONV1D, "v"),
        ("v = Reshape(x, flat) h = Gemm(v, w1) t = Reshape(h, deep6) a = Relu(t) y = MatMul(a, w2)", "x"),
        ("h = MatMul(x, w1) a = Relu(h) u = Reshape(a, flat6) y = Gemm(u, w2)", ""),
    ],
)
def test_reshapes_between_the_products(body: str, source: str) -> None:
    """The block reads tokens as it gives them; where it cannot, it is none and says so."""
    found = ffn.layer_blocks(reshaped(body, "[6,4]" if "y = Gemm" in body else "[2,3,4]").graph)
    assert [b.input.name for b in found.blocks] == ([source] if source else [])
    assert [why for _, why in found.refused] == (
        [] if source else ["its tokens are arranged in another way behind it than before it"]
    )


@pytest.mark.parametrize(
    ("widths", "ends"),
    [
        ((4, 6, 4), [1]),
        ((4, 8, 4, 2), [1]),
        ((4, 4, 8, 4), [2]),
        ((4, 4, 4, 4), [1]),
        ((4, 4, 4, 4, 4), [1, 3]),
        ((4, 16, 32, 16, 4), [1, 3]),
        ((4, 4, 32, 4, 4), [1, 3]),
        ((4, 8, 8, 8, 8, 4), [1, 3]),
        ((4, 4, 4, 8, 8, 4), [2, 4]),
        ((4, 2, 32, 32, 2, 2), [1, 3]),
    ],
)
def test_layers_in_a_row_hold_blocks_that_share_none(widths: tuple[int, ...], ends: list[int]) -> None:
    """Those that hold the most weights together, by trying every set of pairs."""
    pairs = list(itertools.pairwise(widths))
    sizes = [a * b for a, b in pairs]
    sets = [
        s for r in range(len(pairs)) for s in itertools.combinations(range(1, len(pairs)), r)
        if all(b - a > 1 for a, b in itertools.pairwise(s))
    ]  # fmt: skip
    weight = [sum(sizes[i] + sizes[i - 1] for i in s) for s in sets]
    held = {f"w{i}": normal(*p, seed=i) for i, p in enumerate(pairs)}
    steps = "".join(f"h{i} = MatMul(a{i}, w{i}) a{i + 1} = Relu(h{i}) " for i in range(len(pairs)))
    shapes = ", ".join(f"float{list(w.shape)} {n}" for n, w in held.items())
    text = f"g (float[N,{widths[0]}] a0, {shapes}) => (float[N,{widths[-1]}] a{len(pairs)}) {{ {steps} }}"
    found = ffn.layer_blocks(model(text, held).graph)
    got = [int((b.output.name or "")[1:]) for b in found.blocks]
    assert got == ends
    assert sum(sizes[i] + sizes[i - 1] for i in got) == max(weight)
    assert len(found.refused) == len(pairs) - 1 - len(ends)
    assert all("shares a layer with the block that ends in" in why for _, why in found.refused)


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
