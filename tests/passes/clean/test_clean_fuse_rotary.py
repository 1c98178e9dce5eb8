"""Rotary embeddings: every spelling is found, look-alikes are not, and the numbers stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphpress.graph import edit
from graphpress.passes.clean.fuse_rotary import FuseRotary
from graphpress.passes.clean.infer_shapes import InferShapes
from tests import kit

CONSTANTS = """int64[1] zero = {0}, int64[1] half = {4}, int64[1] far = {9223372036854775807}, int64[1] last = {3},
    int64[1] minus = {-1}, int64[1] one = {1}, int64[2] halves = {4, 4}, int64[2] uneven = {2, 6}, float two = {2.0}"""
SLICES = "low = Slice(x, zero, half, last) high = Slice(x, half, far, minus, one)"
SPLIT = "low, high = Split<axis=-1>(x, halves)"
TURN = "n = Neg(high) r = Concat<axis=3>(n, low)"
SUM = "a = Mul(x, c) t = Mul(r, s) y = Add(a, t)"
FREE = "f = Concat<axis=-1>(angles, angles) c = Cos(f) s = Sin(f)"  # angles: [tokens, 4]
BATCHED = """u = Unsqueeze(angles, zero) i = Unsqueeze(u, zero) f = Concat<axis=-1>(i, i)
    k = Cos(f) c = Mul(k, two) z = Sin(f) s = Mul(two, z)"""


def rotary(body: str, *, tokens: str = "s", opset: int = 23, batch: str = "b", angles: str = "s, 4") -> ir.Model:
    return kit.parse(
        f"""<ir_version: 10, opset_import: ["" : {opset}]>
        g (float[{batch}, 2, {tokens}, 8] q, float[{angles}] angles) => (float[{batch}, 2, {tokens}, 8] y)
        <{CONSTANTS}> {{ x = Identity(q) {body} }}"""
    )


def fused(model: ir.Model) -> tuple[ir.Model, list[str]]:
    after, reports = kit.apply(model, InferShapes(), FuseRotary())
    return after, [s.why for s in reports[1].skips]


def check(model: ir.Model, **dims: int) -> ir.Model:
    after, skips = fused(model)
    assert not skips
    assert "RotaryEmbedding" in kit.ops(after)
    assert not {"Neg", "Add"} & set(kit.ops(after))
    kit.assert_same_outputs(model, after, kit.random_feeds(model, dims=dims), rtol=1e-6, atol=1e-6)
    return after


@pytest.mark.parametrize("halves", [SLICES, SPLIT, "low, high = Split<axis=3, num_outputs=2>(x)"])
@pytest.mark.parametrize("angle", [FREE, BATCHED])
@pytest.mark.parametrize("sums", [SUM, "a = Mul(c, x) t = Mul(s, r) y = Add(t, a)"])
def test_spellings(halves: str, angle: str, sums: str) -> None:
    check(rotary(f"{angle} {halves} {TURN} {sums}"), b=3, s=5)


@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 4), tokens=st.integers(1, 40), named=st.booleans())
def test_shapes(batch: int, tokens: int, named: bool) -> None:
    sizes = {} if named else {"batch": str(batch), "tokens": str(tokens), "angles": f"{tokens}, 4"}
    check(rotary(f"{FREE} {SLICES} {TURN} {SUM}", **sizes), b=batch, s=tokens)


def test_angles_of_each_sample() -> None:
    angle = "i = Unsqueeze(angles, one) f = Concat<axis=-1>(i, i) c = Cos(f) s = Sin(f)"
    after = check(rotary(f"{angle} {SLICES} {TURN} {SUM}", angles="b, s, 4"), b=3, s=5)
    assert "Expand" not in kit.ops(after)


def from_table(take: str, table: np.ndarray) -> ir.Model:
    """Two layers that turn by rows of one constant table [6, 8]."""
    numbers = ", ".join(map(str, table.ravel()))
    return kit.parse(
        f"""<ir_version: 10, opset_import: ["" : 23]>
        g (float[b, 2, s, 8] x, int64[s] rows) => (float[b, 2, s, 8] y)
        <{CONSTANTS}, float[6, 8] table = {{{numbers}}}> {{
            {take}
            s = Neg(c)
            low = Slice(x, zero, half, last) high = Slice(x, half, far, minus)
            n = Neg(high) r = Concat<axis=3>(n, low) a = Mul(x, c) t = Mul(r, c) z = Add(a, t)
            low2 = Slice(z, zero, half, last) high2 = Slice(z, half, far, minus)
            n2 = Neg(high2) r2 = Concat<axis=3>(n2, low2) a2 = Mul(z, c) t2 = Mul(r2, c) y = Add(a2, t2)
        }}"""
    )


COLUMNS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32).round(3)


def test_a_constant_table_is_read_once_for_all_layers() -> None:
    model = from_table("c = Gather<axis=0>(table, rows)", np.concatenate([COLUMNS, COLUMNS], 1))
    after, skips = fused(model)
    assert not skips
    assert kit.ops(after).count("RotaryEmbedding") == 2
    assert [kit.ops(after).count(op) for op in ("Gather", "Slice", "Expand", "Concat")] == [1, 1, 1, 1]
    kit.assert_same_outputs(model, after, kit.random_feeds(model, dims={"b": 2, "s": 5}), rtol=1e-6, atol=1e-6)


def test_heads_are_split_after_the_rotation() -> None:
    model = kit.parse(
        f"""<ir_version: 10, opset_import: ["" : 23]>
        g (float[b, s, 16] q, float[s, 4] angles) => (float[b, 2, s, 8] y)
        <{CONSTANTS}, int64[4] split = {{0, 0, 2, 8}}> {{
            p = Identity(q) h = Reshape(p, split) x = Transpose<perm=[0, 2, 1, 3]>(h)
            {FREE} {SLICES} {TURN} {SUM}
        }}"""
    )
    after = check(model, b=3, s=5)
    order = [op for op in kit.ops(after) if op in ("RotaryEmbedding", "Reshape", "Transpose")]
    assert order == ["RotaryEmbedding", "Reshape", "Transpose"]
    node = next(n for n in edit.nodes(after) if n.op_type == "RotaryEmbedding")
    assert edit.attribute(node, "num_heads") == 2


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (rotary(f"{FREE} {SLICES} {TURN} {SUM}", opset=22), "needs opset 23"),
        (
            rotary(f"u = Neg(angles) f = Concat<axis=-1>(angles, u) c = Cos(f) s = Sin(f) {SLICES} {TURN} {SUM}"),
            "equal",
        ),
        (
            rotary(f"v = Cos(angles) f = Concat<axis=-1>(v, angles) c = Cos(f) s = Sin(f) {SLICES} {TURN} {SUM}"),
            "equal",
        ),
        (rotary(f"{FREE} {SLICES} n = Neg(low) r = Concat<axis=3>(n, high) {SUM}"), ""),
        (rotary(f"{FREE} {SLICES} n = Neg(high) r = Concat<axis=3>(low, n) {SUM}"), ""),
        (rotary(f"{FREE} {SLICES} {TURN} a = Mul(q, c) t = Mul(r, s) y = Add(a, t)"), ""),
        (rotary(f"{FREE} {SLICES} {TURN} a = Mul(x, c) t = Mul(r, s) y = Sub(a, t)"), ""),
        (rotary(f"{FREE} {SLICES} n = Neg(high) e = Neg(n) r = Concat<axis=3>(e, low) {SUM}"), ""),
        (rotary(f"{FREE} low, high = Split<axis=-1>(x, uneven) {TURN} {SUM}"), ""),
        (rotary(f"{FREE} {SLICES} {TURN} {SUM}", tokens="6", angles="1, 4"), "are not"),
        (from_table("c = Gather<axis=0>(table, rows)", np.arange(48, dtype=np.float32)), "equal"),
    ],
)
def test_look_alikes_stay(model: ir.Model, why: str) -> None:
    after, skips = fused(model)
    assert "RotaryEmbedding" not in kit.ops(after)
    assert all(why in s for s in skips) if why else skips == []
    assert bool(skips) == bool(why)
