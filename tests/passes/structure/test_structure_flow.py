"""Channels through whole attentions: repeated keys and values, interleaved q, k and v, GatherND, open sizes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.graph import edit
from graphpress.passes.equalize.smooth import Smooth
from graphpress.pipeline import Pipeline
from graphpress.recipe import parse_passes
from tests import kit
from tests.passes.quantizing import context
from tests.passes.rotating import deviation, double, torch_run, weighted

pytest.importorskip("torch")

SIZES = """
    many = Constant <value_ints = [0, -1, 4, 2]> () few = Constant <value_ints = [0, -1, 2, 2]> ()
    threes = Constant <value_ints = [0, -1, 4, 3, 2]> () first = Constant <value_ints = [0, -1, 3, 4, 2]> ()
    back = Constant <value_ints = [0, -1, 8]> () each = Constant <value_ints = [0, 4, -1, 2]> ()
    i0 = Constant <value_int = 0> () i1 = Constant <value_int = 1> () i2 = Constant <value_int = 2> ()
    at = Constant <value_ints = [2]> ()
    copies = Constant <value_ints = [1, 1, 2, 1, 1]> ()
    picks = Constant <value = int64[2, 1] {1, 0}> ()
"""
HEADS = "Transpose <perm = [0, 2, 1, 3]>"
SEPARATE = f"""q0 = MatMul (n, wq) k0 = MatMul (n, wk) v0 = MatMul (n, wv)
    q1 = Reshape (q0, many) k1 = Reshape (k0, few) v1 = Reshape (v0, few)
    q = {HEADS} (q1) k2 = {HEADS} (k1) v2 = {HEADS} (v1)"""
REPEATED = """k3 = Unsqueeze (k2, at) k4 = Expand (k3, copies) k = Reshape (k4, each)
    v3 = Unsqueeze (v2, at) v4 = Expand (v3, copies) v = Reshape (v4, each)"""
SPELLED = "kt = Transpose <perm = [0, 1, 3, 2]> (k) s1 = MatMul (q, kt) p = Softmax <axis = -1> (s1) o0 = MatMul (p, v)"


def taken(axis: int, shape: str) -> str:
    picks = " ".join(f"{n}1 = Gather <axis = {axis}> (r, i{i}) {n} = {HEADS} ({n}1)" for i, n in enumerate("qkv"))
    return f"a = MatMul (n, wqkv) r = Reshape (a, {shape}) {picks}"


ATTENTIONS = {
    "repeated, spelled out": f"{SEPARATE} {REPEATED} {SPELLED}",
    "repeated, fused": f"{SEPARATE} {REPEATED} o0 = Attention (q, k, v)",
    "shared by Attention": f"{SEPARATE} o0 = Attention (q, k2, v2)",
    "interleaved by head": f"{taken(3, 'threes')} o0 = Attention (q, k, v)",
    "interleaved before heads": f"{taken(2, 'first')} {SPELLED}",
    "split by head": f"""a = MatMul (n, wqkv) r = Reshape (a, threes) l, m, u = Split <axis = 3, num_outputs = 3> (r)
        three = Constant <value_ints = [3]> () q1 = Squeeze (l, three) k1 = Squeeze (m, three) v1 = Squeeze (u, three)
        q = {HEADS} (q1) k = {HEADS} (k1) v = {HEADS} (v1) o0 = Attention (q, k, v)""",
}
WEIGHTS = {
    "t": (11, 8), "g": (8,), "wq": (8, 8), "wk": (8, 4), "wv": (8, 4), "wqkv": (8, 24), "wo": (8, 8), "up": (8, 12),
    "down": (12, 8), "head": (8, 5),
}  # fmt: skip


ONE_OF_EACH = "GatherND <batch_dims = 1> (s, picks)"
FIRST = "Gather <axis = 1> (s, i0)"


def block(attention: str, pick: str = ONE_OF_EACH, batch: str = "2") -> ir.Model:
    """Embedding, attention, one token of each sequence, MLP, head; sizes are open."""
    body = f"""{SIZES} e = Gather (t, ids) n = RMSNormalization (e, g) {ATTENTIONS[attention]}
        o1 = {HEADS} (o0) o2 = Reshape (o1, back) o = MatMul (o2, wo) s = Add (e, o)
        c = {pick} m0 = RMSNormalization (c, g) h = MatMul (m0, up) f = Relu (h)
        d = MatMul (f, down) z = Add (c, d) m1 = RMSNormalization (z, g) y = MatMul (m1, head)"""
    used = {n: s for n, s in WEIGHTS.items() if f" {n})" in body or f"({n}," in body}
    return weighted(body, used, f"int64[{batch}, S] ids")


FEEDS = {"ids": np.random.default_rng(0).integers(0, 11, (2, 6))}


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_rotations_r1_r2_and_r4_keep_the_function(attention: str) -> None:
    model = double(block(attention))
    after, (_, turned) = Pipeline(parse_passes("fold-norms,rotate{down=true}")).run(model)
    counts = ("residual streams turned", "value heads turned", "down projections turned")
    assert turned.skips == [] and [turned.metrics[c] for c in counts] == [1, 1, 1]
    assert 0 < deviation(torch_run(model, FEEDS), torch_run(after, FEEDS)) <= 1e-10


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_smoothing_reaches_the_values_and_keeps_the_function(attention: str) -> None:
    model = block(attention, FIRST, "B")
    after, (report,) = kit.apply(model, Smooth(alpha=0.5, batch_size=2), ctx=context(FEEDS, target=None))
    names = {v.name for n in model.graph if n.op_type == "MatMul" for v in n.inputs if edit.is_constant(v)}
    before, now = model.graph.initializers, after.graph.initializers
    same = {n for n in names if np.array_equal(before[n].const_value.numpy(), now[n].const_value.numpy())}
    assert same == set() and report.skips == []
    wanted, got = kit.run(model, FEEDS)["y"], kit.run(after, FEEDS)["y"]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
