"""Sequences as lists and optional values as None, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from graphpress.backends import fx
from graphpress.errors import BadRequest
from tests import kit
from tests.backends.fx.single import normal


def both(source: str, **feeds: Any) -> dict[str, Any]:
    """What torch gives, equal to what ONNX Runtime gives."""
    model = kit.parse(source)
    given, expected = fx.execute(model)(feeds), kit.run(model, feeds)
    for name, wanted in expected.items():
        found = given[name] if isinstance(wanted, list) else [given[name]]
        wanted = wanted if isinstance(wanted, list) else [wanted]
        assert [f.shape for f in found] == [w.shape for w in wanted]
        assert [f.dtype for f in found] == [w.dtype for w in wanted]
        for f, w in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(f, w)
    return given


XS = [normal(2, 3, seed=i) for i in range(4)]


@pytest.mark.parametrize("position", [0, 2, 4, -1, -4])
def test_insert(position: int) -> None:
    source = """
    g (seq(float[2, 3]) xs, float[2, 3] x, int64 i) => (seq(float[2, 3]) ys, float[2, 3] y, int64 n) {
        ys = SequenceInsert(xs, x, i)
        y = SequenceAt(ys, i)
        n = SequenceLength(ys)
    }"""
    if position == 4:
        source = source.replace("SequenceAt(ys, i)", "SequenceAt(xs, one)").replace("n) {", "n) <int64 one = {1}> {")
    both(source, xs=XS, x=normal(2, 3, seed=9), i=np.array(position))


@pytest.mark.parametrize("position", [0, 3, -1, -4, None])
def test_erase(position: int | None) -> None:
    source = "g (seq(float[2, 3]) xs, int64 i) => (seq(float[2, 3]) ys) { ys = SequenceErase(xs, i) }"
    if position is None:
        both(source.replace("xs, i)", "xs)").replace(", int64 i", ""), xs=XS)
    else:
        both(source, xs=XS, i=np.array(position))


@pytest.mark.parametrize(("op", "position"), [("Insert", 5), ("Insert", -5), ("Erase", 4), ("Erase", -5), ("At", 4)])
def test_positions_out_of_range_fail(op: str, position: int) -> None:
    given = "xs, x, i" if op == "Insert" else "xs, i"
    kind = "float[2, 3]" if op == "At" else "seq(float[2, 3])"
    source = f"g (seq(float[2, 3]) xs, float[2, 3] x, int64 i) => ({kind} y) {{ y = Sequence{op}({given}) }}"
    feeds: Any = {"xs": XS, "x": XS[0], "i": np.array(position)}
    with pytest.raises(BadRequest):
        fx.execute(kit.parse(source))(feeds)


@pytest.mark.parametrize("split", ["int64 s = {2}", "int64[3] s = {1, 3, 1}", "int64[1] s = {5}", "int64 s = {3}"])
def test_split_by_lengths(split: str) -> None:
    source = f"g (float[2, 5] x) => (seq(float[2, M]) ys) <{split}> {{ ys = SplitToSequence<axis = -1>(x, s) }}"
    both(source, x=normal(2, 5))


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("new_axis", [0, 1])
def test_split_one_by_one_and_join(new_axis: int, keepdims: int) -> None:
    source = f"""
    g (float[2, 5] x) => (float[A, B] y) {{
        xs = SplitToSequence<axis = 1, keepdims = {keepdims}>(x)
        y = ConcatFromSequence<axis = {-1 if new_axis else 0}, new_axis = {new_axis}>(xs)
    }}"""
    if keepdims and new_axis:
        source = source.replace("float[A, B]", "float[A, B, C]")
    if not keepdims and not new_axis:
        source = source.replace("float[A, B]", "float[A]")
    both(source, x=normal(2, 5))


def test_a_loop_carries_a_sequence() -> None:
    source = """
    g (float[3, 2] x, int64 n) => (seq(float[2]) ys, float[M] z) <bool yes = {1}> {
        none = SequenceEmpty<dtype = 1>()
        ys = Loop (n, yes, none) <
            body = b (int64 i, bool c, seq(float[2]) xs) => (bool c_out, seq(float[2]) more) {
                c_out = Identity(c)
                row = Gather(x, i)
                more = SequenceInsert(xs, row)
            }
        >
        z = ConcatFromSequence<axis = 0>(ys)
    }"""
    given = both(source, x=normal(3, 2), n=np.array(3))
    assert len(given["ys"]) == 3


def test_map_over_sequences_and_tensors() -> None:
    """Its definition is a Loop; here it is a call for each element."""
    source = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (seq(float[N]) xs, seq(float[N]) zs, float[1] w) => (seq(float[N]) sums, seq(int64[1]) shapes) {
        sums, shapes = SequenceMap (xs, zs, w) <
            body = b (float[N] x, float[N] z, float[1] v) => (float[N] y, int64[1] s) {
                p = Mul(z, v)
                y = Add(x, p)
                s = Shape(x)
            }
        >
    }"""
    xs, zs = [normal(n) for n in (2, 5)], [normal(n, seed=7) for n in (2, 5)]
    given: Any = fx.execute(kit.parse(source))({"xs": xs, "zs": zs, "w": np.array([2], np.float32)})  # type: ignore[dict-item]
    for x, z, y, s in zip(xs, zs, given["sums"], given["shapes"], strict=True):
        np.testing.assert_allclose(y, x + z * 2, rtol=1e-6)
        assert s.tolist() == list(x.shape)


def test_gradients_pass_through_sequences() -> None:
    source = """
    g (float[4, 3] x) => (float[3] y) <int64 two = {2}> {
        xs = SplitToSequence<axis = 0, keepdims = 0>(x)
        ys = SequenceErase(xs, two)
        y = SequenceAt(ys, two)
    }"""
    x = torch.randn(4, 3, requires_grad=True)
    fx.build(kit.parse(source))(x).sum().backward()
    assert x.grad is not None
    assert x.grad.sum(1).tolist() == [0.0, 0.0, 0.0, 3.0]


def test_optional_values() -> None:
    source = """
    g (optional(float[3]) x) => (bool there, float[3] y) <float[3] otherwise = {7, 8, 9}> {
        there = OptionalHasElement(x)
        y = If (there) < then_branch = yes () => (float[3] a) { a = OptionalGetElement(x) },
                         else_branch = no () => (float[3] a) { a = Identity(otherwise) } >
    }"""
    run, x = fx.execute(kit.parse(source)), normal(3)
    nothing: Any = {"x": None}
    assert run(nothing)["y"].tolist() == [7.0, 8.0, 9.0]
    given = run({"x": x})
    np.testing.assert_array_equal(given["y"], x)
    assert given["there"]
    with pytest.raises(BadRequest, match="not there"):
        fx.execute(kit.parse("g (optional(float[3]) x) => (float[3] y) { y = OptionalGetElement(x) }"))(nothing)
