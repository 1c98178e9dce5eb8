"""The rule table: whatever an operator is said to let pass leaves the numbers as they were; the rest has a reason.

For every line and every move that it claims, two layers with the operator between them are changed through the engine
and run by the reference implementation of ONNX in float64. What a line refuses is shown to be wrong by numbers
(``COUNTER``), or is a choice, whose reason stands in ``CHOICES``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphpress.graph import edit
from graphpress.passes.structure.channels.commuting import TABLE
from tests.passes.structure import rule_cases as cases
from tests.passes.structure.rule_cases import ANY, ROTATE, SIGN, SLICE, Sizes, floats, ints

EXACT = 1e-10  # of the largest output, in float64
SIZES = st.builds(Sizes, st.integers(1, 2), st.sampled_from([2, 4]), st.integers(1, 3), st.sampled_from([2, 4]))

# body, shapes of further weights, whether images, width of k: from the sizes
Case = tuple[str, dict[str, tuple[int, ...]], bool, int]
Made = Callable[[Sizes], Case]


def on(body: str, image: bool = False, **more: str) -> Made:
    """``body`` with sizes in braces; ``more`` are shapes of weights, likewise."""

    def made(s: Sizes) -> Case:
        names = {"B": s.b, "T": s.t, "H": s.h, "D": s.d, "C": s.c, "HALF": s.c // 2, "LAST": s.c - 1, "TWICE": 2 * s.c}
        width = int(more.get("k", "{C}").format(**names))
        shapes = {n: tuple(map(int, z.format(**names).split())) for n, z in more.items() if n != "k"}
        return body.format(**names).replace("[[", "{").replace("]]", "}"), shapes, image, width

    return made


def unary(op: str, before: str = "", attributes: str = "") -> Made:
    source = "p" if before else "h"
    return on(f"{before.replace('->', 'p =')} k = {op} {attributes} ({source})")


def as_float(text: str) -> Made:
    return on(f"{text} g = Cast <to = 1> (n) k = Add (g, h)", c="{C}")


ONE, LAST = ints("one", 1), ints("last", -1)
PLAIN = {op: unary(op) for op in (
    "Identity", "Neg", "Relu", "LeakyRelu", "Abs", "Elu", "Selu", "Celu", "Gelu", "Sigmoid", "HardSigmoid", "Tanh",
    "HardSwish", "Mish", "Softplus", "Softsign", "ThresholdedRelu", "Erf", "Exp", "Reciprocal", "Sign", "Floor",
    "Ceil", "Round", "Sin", "Cos", "Shrink", "Softmax", "LogSoftmax", "LpNormalization", "Swish",
)}  # fmt: skip
EXAMPLES: dict[str, Made] = PLAIN | {
    "Cast": unary("Cast", attributes="<to = 1>"),
    "Dropout": unary("Dropout"),
    "Log": unary("Log", "-> Abs (h)"),
    "Sqrt": unary("Sqrt", "-> Abs (h)"),
    "IsNaN": on("n = IsNaN (h) g = Cast <to = 1> (n) k = Add (g, h)"),
    "Not": on("a = Cast <to = 9> (h) n = Not (a) g = Cast <to = 1> (n) k = Sub (h, g)"),
    "PRelu": on("k = PRelu (h, c)", c="{C}"),
    "Add": on("a = Add (h, c) k = Add (a, one1)", c="{C}", one1="1"),
    "Sub": on("a = Sub (c, h) e = MatMul (x, w2) k = Sub (a, e)", c="{C}", w2="6 {C}"),
    "Sum": on("e = MatMul (x, w2) k = Sum (h, c, e)", c="{C}", w2="6 {C}"),
    "Mul": on("a = Mul (h, c) k = Mul (a, one1)", c="{C}", one1="1"),
    "Div": on("f = ReduceMax <keepdims = 1> (x) a = Div (h, f) k = Div (a, positive)", positive="{C}"),
    "Where": on(
        LAST + "f = ReduceMax <keepdims = 1> (x, last) m = Relu (f) g = Cast <to = 9> (m) k = Where (g, h, c)", c="{C}"
    ),
    **{op: on(f"p = Abs (h) k = {op} (p, c)", c="{C}") for op in ("Pow", "Max", "Min", "Mean")},
    "Mod": on("k = Mod <fmod = 1> (h, c)", c="{C}"),
    "Clip": on("l = Constant <value_float = -0.5> () m = Constant <value_float = 0.7> () k = Clip (h, l, m)"),
    **{op: as_float(f"n = {op} (h, c)") for op in ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual")},
    **{
        op: as_float(f"a = Cast <to = 9> (h) e = Less (h, c) n = {op} (a, e)") for op in ("And", "Or")
    },
    "MatMul": on("k = MatMul (h, u)", u="{C} {C}"),
    "Gemm": on(ints("flat", -1) + "a = Flatten <axis = 2> (h) k = Gemm <transB = 1> (a, u, c)", u="{C} {C}", c="{C}"),
    "Conv": on("k = Conv (h, u, c)", True, u="{C} {C} 1 1", c="{C}"),
    "Attention": on(
        "q = MatMul (x, w2) k = Attention <q_num_heads = {H}, kv_num_heads = {H}> (q, q, h)", w2="6 {C}"
    ),
    **{op: on(f"o, n = {op} <hidden_size = 1> (h, u, r) f = ReduceMax <keepdims = 0> (o) k = Mul (h, f)",
              u=f"1 {gates} {{C}}", r=f"1 {gates} 1") for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1))},
    "LayerNormalization": on("k = LayerNormalization <axis = -1> (h, c, d)", c="{C}", d="{C}"),
    "RMSNormalization": on("k = RMSNormalization <axis = -1> (h, c)", c="{C}"),
    "BatchNormalization": on(
        "k = BatchNormalization (h, c, d, m, positive)", True, c="{C}", d="{C}", m="{C}", positive="{C}"
    ),
    "InstanceNormalization": on("k = InstanceNormalization (h, c, d)", True, c="{C}", d="{C}"),
    **{f"Reduce{op}": on(f"{ONE} k = Reduce{op} <keepdims = 1> (h, one)") for op in (
        "Mean", "Sum", "Max", "Min", "L1", "L2", "Prod", "SumSquare", "LogSumExp"
    )},
    **{op: on(f"k = {op} <kernel_shape = [2, 2]> (h)", True) for op in ("AveragePool", "MaxPool", "LpPool")},
    **{op: on(f"k = {op} (h)", True) for op in ("GlobalAveragePool", "GlobalMaxPool")},
    "Resize": on(floats("twice", 1, 1, 2, 2) + "k = Resize <mode = \"nearest\"> (h, , twice)", True),
    "Shape": on("n = Shape (h) k = Reshape (h, n)"),
    "Size": on("n = Size (h) g = Cast <to = 1> (n) k = Div (h, g)"),
    "Transpose": on("a = Transpose <perm = [2, 0, 1]> (h) k = Transpose <perm = [1, 2, 0]> (a)"),
    "Flatten": on("k = Flatten <axis = 2> (h)"),
    "Squeeze": on(ONE + "a = Unsqueeze (h, one) k = Squeeze (a, one)"),
    "Unsqueeze": on(ONE + "k = Unsqueeze (h, one)"),
    "Reshape": on(ints("rows", -1) + "n = Constant <value_ints = [-1, {C}]> () k = Reshape (h, n)"),
    "Expand": on(ONE + "n = Constant <value_ints = [{B}, 2, {T}, {C}]> () a = Unsqueeze (h, one) k = Expand (a, n)"),
    "Concat": on("e = MatMul (x, w2) k = Concat <axis = -1> (h, e)", w2="6 {C}", k="{TWICE}"),
    "Split": on("l, r = Split <axis = -1, num_outputs = 2> (h) k = Mul (l, r)", k="{HALF}"),
    "Slice": on(ints("start", 1) + ints("end", 100) + LAST + "k = Slice (h, start, end, last)", k="{LAST}"),
    "Gather": on("i = Constant <value_ints = [0, 1]> () k = Gather <axis = 1> (h, i)"),
    "GatherND": on("i = Constant <value = int64[2, 2] [[0, 1, 0, 0]]> () k = GatherND (h, i)"),
    "Pad": on("n = Constant <value_ints = [0, 0, 1, 0, 0, 0, 0, 1]> () k = Pad (h, n)", True),
}  # fmt: skip
# Where a move takes another form of the operator than the first.
TOKENS = "e = MatMul (x, w2) k = Concat <axis = 1> (h, e)"
OTHER: dict[tuple[str, object], Made] = {
    ("Attention", ROTATE): on(
        "q = MatMul (x, w2) k = Attention <q_num_heads = 1, kv_num_heads = 1> (q, q, h)", w2="6 {C}"
    ),
    ("Mul", ROTATE): on("f = ReduceMax <keepdims = 1> (x) a = Mul (h, f) k = Mul (one1, a)", one1="1"),
    ("Div", ROTATE): on("f = ReduceMax <keepdims = 1> (x) k = Div (h, f)"),
    ("Concat", ROTATE): on(TOKENS, w2="6 {C}"),
    **{("Split", m): on("l, r = Split <axis = 1, num_outputs = 2> (h) k = Add (l, r)") for m in (ROTATE, SLICE)},
    **{("Slice", m): on(ints("start", 1) + ints("end", 100) + ONE + "k = Slice (h, start, end, one)")
       for m in (ROTATE, SLICE)},
}  # fmt: skip
NO_REFERENCE = {"SimplifiedLayerNormalization", "GlobalLpPool", "Swish"}  # ONNX has no implementation of them to ask


def model(op: str, move: object, sizes: Sizes):
    body, more, image, width = OTHER.get((op, move), EXAMPLES[op])(sizes)
    return cases.graph(body, sizes, more, image, width)


def test_every_line_has_an_example() -> None:
    assert set(TABLE) == set(EXAMPLES) | NO_REFERENCE


CLAIMS = [(op, move) for op, rule in TABLE.items() if op not in NO_REFERENCE for move in ANY if move in rule.moves]


@pytest.mark.parametrize(("op", "move"), CLAIMS, ids=lambda v: getattr(v, "name", v))
@settings(max_examples=3, derandomize=True, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 99))
def test_what_a_rule_lets_pass_changes_no_number(op: str, move: object, sizes: Sizes, seed: int) -> None:
    assume(sizes.c >= 4)
    built = model(op, move, sizes)
    assert cases.why_not(built, move) == ""
    before, after = cases.moved(built, move, seed)
    changed = [
        n
        for n, v in before.graph.initializers.items()
        if not np.array_equal(v.const_value.numpy(), after.graph.initializers[n].const_value.numpy())
    ]
    assert "v" in changed and len(changed) > 1
    wanted, got = (cases.outputs(m, cases.inputs(m)) for m in (before, after))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=EXACT * np.abs(wanted).max())


# Operators without constants of their own: what they refuse, numbers refute.
SUMS = ("Max", "Min", "L1", "L2", "Prod", "SumSquare", "LogSumExp")
BARE = [op for op in PLAIN if op != "LpNormalization"] + [f"Reduce{k}" for k in SUMS]
BARE += ["Log", "Sqrt", "Clip", "MaxPool", "LpPool", "GlobalMaxPool"]
CHOICES = {
    "LpNormalization": "a whole turn keeps the length that it divides by: nobody asked for it",
    "PRelu": "a slope for each channel is no rotation",
    "Pow": "its exponents are constants for each channel", "Max": "compares with constants for each channel",
    "Min": "compares with constants for each channel", "Mean": "only orders are needed",
    "Mod": "compares with constants for each channel", "Attention": "the head size is in its scale",
    "LayerNormalization": "is rotated as a norm site, and its mean counts channels",
    "RMSNormalization": "is rotated as a norm site, and its mean counts channels",
    "BatchNormalization": "has constants for each channel", "InstanceNormalization": "has constants for each channel",
    "Shape": "what reads the number may depend on it", "Size": "what reads the number may depend on it",
    "Reshape": "a constant may name the number", "Expand": "a constant may name the number",
    **dict.fromkeys(("IsNaN", "Not", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or"),
                    "gives truth, which has no scale"),
    **dict.fromkeys(("Resize", "AveragePool"), "only orders are needed"),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), "only factors are needed"),
}  # fmt: skip
REFUSED = [(op, m) for op, rule in TABLE.items() if op not in NO_REFERENCE for m in ANY if m not in rule.moves]


@pytest.mark.parametrize(("op", "move"), REFUSED, ids=lambda v: getattr(v, "name", v))
def test_what_a_rule_refuses_would_change_numbers_or_is_a_choice(op: str, move: object) -> None:
    sizes = Sizes(2, 2, 2, 4)
    built = model(op, move, sizes)
    assert cases.why_not(built, move)
    if op not in BARE:
        assert CHOICES[op]
        return
    before, after = (m.clone() for m in (cases.double(built), cases.double(built)))
    w, v = (after.graph.initializers[n].const_value.numpy() for n in "wv")
    made, read = (0, 1) if w.ndim == 4 else (1, 0)  # the axes of the channels
    rng = np.random.default_rng(0)
    if move is SLICE:
        kept = np.arange(sizes.c) % 2 == 0
        edit.overwrite(
            before.graph.initializers["v"], v * kept.reshape([-1 if a == read else 1 for a in range(v.ndim)])
        )
        left, right = np.eye(sizes.c)[:, kept], np.eye(sizes.c)[:, kept]
    elif move is ROTATE:
        left = right = np.linalg.qr(rng.normal(size=(sizes.c, sizes.c)))[0]
    else:
        by = np.exp(rng.normal(size=sizes.c)) * (rng.choice([-1.0, 1.0], sizes.c) if move is SIGN else 1)
        left, right = np.diag(1 / by), np.diag(by)
    edit.overwrite(after.graph.initializers["w"], np.moveaxis(np.moveaxis(w, made, -1) @ left, -1, made))
    edit.overwrite(after.graph.initializers["v"], np.moveaxis(np.moveaxis(v, read, -1) @ right, -1, read))
    with np.errstate(all="ignore"):
        wanted, got = (cases.outputs(m, cases.inputs(m)) for m in (before, after))
    assert not np.allclose(got, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
