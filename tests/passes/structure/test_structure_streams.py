"""Residual streams: which values change basis together, which weights write and read them, what is in the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import graphpress as gp
from graphpress.passes.structure.channels.lanes import on_one_axis, reshape, varying
from graphpress.passes.structure.channels.moves import Holder
from graphpress.passes.structure.layers.streams import ResidualStream, find_streams
from tests.passes.rotating import clean, weighted

WEIGHTS = {"w": (4, 4), "u": (4, 4), "b": (4,), "t": (9, 4), "g": (4,), "p": (3, 4), "c": (1,)}
CONSTANTS = """
    one = Constant <value_ints = [1]> () two = Constant <value_ints = [2]> () zero = Constant <value_int = 0> ()
    flat = Constant <value_ints = [-1, 4]> () three = Constant <value_ints = [2, 3, 4]> ()
"""
STREAM = f"{CONSTANTS} e = Gather(t, ids) r = Add(e, p) n = RMSNormalization(r, g) h = MatMul(n, w) s = Add(r, h)"


def axis(holder: Holder) -> int:
    """Its axis that runs over the channels, from the end."""
    return varying(holder.lanes)[0] - holder.lanes.ndim


def streams(body: str) -> list[ResidualStream]:
    model = weighted(f"{STREAM} {body}", WEIGHTS, "int64[2,3] ids, float[2,3,4] x")
    return find_streams(model.graph)


def test_a_stream_has_its_writers_readers_and_norms() -> None:
    (stream,) = streams("m = RMSNormalization(s, g) y = MatMul(m, u)")
    assert (stream.width, stream.sums, stream.carried.blocks) == (4, 1, [])
    assert [(w.node.op_type, w.slot, axis(w)) for w in stream.writers] == [
        ("Gather", 0, -1),
        ("Add", 1, -1),
        ("MatMul", 1, -1),
    ]
    assert [(r.node.op_type, axis(r)) for r in stream.readers] == [("MatMul", -2), ("MatMul", -2)]
    assert [n.node.op_type for n in stream.norms] == ["RMSNormalization"] * 2


def test_classes_are_apart_where_a_layer_lies_between() -> None:
    two = streams("a = MatMul(s, u) k = RMSNormalization(a, g) z = MatMul(k, w) q = Add(a, z) y = MatMul(q, u)")
    assert len(two) == 2 and not two[0].carried.members.keys() & two[1].carried.members.keys()
    assert [r.node.outputs[0].name for r in two[0].readers] == ["h", "a"]


BLOCKED = {
    "q = Relu(s) y = MatMul(q, u)": "Relu acts on the channels one by one",
    "q = Sigmoid(s) z = Mul(q, s) y = MatMul(z, u)": "joins the channels of two computed values",
    "z = Mul(s, x) y = MatMul(z, u)": "joins the channels of two computed values",
    "q = Mul(s, b) y = MatMul(q, u)": "scales each channel by a constant of its own",
    "y = Identity(s)": "'y' is an output of its graph",
    "q = Add(s, x) y = MatMul(q, u)": "it is an input of its graph",
    "a, d = Split <axis = -1, num_outputs = 2> (s) q = Concat <axis = -1> (d, a) y = MatMul(q, u)": "cut off",
    "q = Softmax(s) y = MatMul(q, u)": "Softmax",
    "q = ReduceMean <keepdims = 1> (s, two) z = Add(s, q) y = MatMul(z, u)": "reduces the channels",
    "q = Transpose <perm = [0,2,1]> (s) k = Concat <axis = 1> (q, q) y = Transpose(k)": "other channels beside",
    "q = Reshape(s, halves) y = Relu(q)": "breaks up the channels",
    "q = Gather <axis = 2> (s, zero) y = Relu(q)": "picks single channels",
    "q = Concat <axis = 0> (s, s) y = LayerNormalization <axis = 1> (q, g2)": "LayerNormalization",
}


@pytest.mark.parametrize("body", BLOCKED)
def test_what_blocks_a_stream_is_named(body: str) -> None:
    extra = (
        "halves = Constant <value_ints = [2, 6, 2]> () g2 = Constant <value = float[3,4] {1,1,1,1,1,1,1,1,1,1,1,1}> ()"
    )
    (stream,) = streams(f"{extra} {body}")
    assert any(BLOCKED[body] in b.why for b in stream.carried.blocks), stream.carried.blocks


PASSES = {
    "transposes": "q = Transpose <perm = [2,0,1]> (s) k = Transpose <perm = [1,2,0]> (q) z = MatMul(k, u)",
    "a scalar": "q = Mul(s, c) z = MatMul(q, u)",
    "one number a token": "q = ReduceMax <keepdims = 1> (x, two) k = Div(s, q) z = MatMul(k, u)",
    "a mean of tokens": "q = ReduceMean <keepdims = 1> (s, one) k = Expand(q, three) z = MatMul(k, u)",
    "more tokens": "q = Concat <axis = 1> (s, s) z = MatMul(q, u)",
    "flat tokens": "q = Reshape(s, flat) z = MatMul(q, u)",
    "one token": "q = Gather <axis = 1> (s, zero) z = MatMul(q, u)",
    "its shape": "q = Shape(s) k = MatMul(s, u) z = Reshape(k, q)",
    "a mask": "k = ReduceMax <keepdims = 1> (x, two) f = Cast <to = 9> (k) q = Where(f, s, c) z = MatMul(q, u)",
    "a stack of layers": "i = Unsqueeze(u, one) j = Transpose <perm = [1,0,2]> (i) z = MatMul(s, u)",
    "parts of tokens": "a, d = Split <axis = 1> (s, parts) z = MatMul(a, u)",
    "a flattened Gemm": "q = Reshape(s, flat) z = Gemm <transB = 1> (q, u, b)",
}


@pytest.mark.parametrize("what", PASSES)
def test_what_lets_channels_pass(what: str) -> None:
    parts = "parts = Constant <value_ints = [1, 2]> ()"
    (stream,) = streams(f"{parts} {PASSES[what]} y = Relu(z)")
    assert stream.carried.blocks == [] and len(stream.readers) == 2


def test_a_convolution_writes_channels_and_reshapes_carry_them() -> None:
    body = """k = Conv <strides = [2,2]> (x, w, b)
        s = Constant <value_ints = [0, 4, 16]> () one = Constant <value_ints = [1]> ()
        r = Reshape(k, s) t = Transpose <perm = [0,2,1]> (r) e = Add(t, p) n = RMSNormalization(e, g) m = MatMul(n, u)
        a = Add(e, m) z = ReduceMean <keepdims = 0> (a, one) y = MatMul(z, h)"""
    sizes = {"w": (4, 3, 2, 2), "b": (4,), "p": (16, 4), "g": (4,), "u": (4, 4), "h": (4, 5)}
    (stream,) = find_streams(weighted(body, sizes, "float[2,3,8,8] x").graph)
    assert stream.carried.blocks == []
    held = [h for h in stream.carried.holders if h.node.op_type == "Conv"]
    assert [(h.slot, axis(h), h.bias) for h in held] == [(1, -4, False), (2, -1, True)]
    assert [r.node.outputs[0].name for r in stream.readers] == ["m", "y"]


@pytest.mark.parametrize(
    ("before", "after", "axis", "extent", "wanted"),
    [
        ([2, 3, 8], [6, 8], 2, 8, (1, 8)),
        (["b", "s", 8], ["b", "s", 2, 4], 2, 4, (3, 4)),
        (["b", "s", 2, 4], ["b", "s", 8], 3, 4, (2, 8)),
        (["b", 8, "h", "w"], ["b", 8, "h*w"], 1, 8, (1, 8)),
        (["b", 8, "h", "w"], ["b", 8, None], 1, 8, (1, 8)),
        (["s", "4*b", 12], ["s", "b", 48], 2, 12, (2, 48)),
        ([2, 8, 3], [2, 4, 6], 1, 8, "breaks up"),
        ([2, 8], [2, 2, 4], 1, 8, "breaks up"),
        ([None, 8], [None, 2, 4], 1, 4, (2, 4)),
    ],
)
def test_places_after_a_reshape(before, after, axis: int, extent: int, wanted) -> None:
    lanes = (np.arange(before[axis]) % extent).reshape([-1 if a == axis else 1 for a in range(len(before))])
    found = reshape(lanes, before, after)
    if isinstance(wanted, str):
        assert found is None or not on_one_axis(found, extent)
    else:
        assert found is not None and varying(found) == [wanted[0]] and on_one_axis(found, extent)
        assert found.ravel().tolist() == [i % extent for i in range(found.size)] and wanted[1] % found.size == 0


@pytest.mark.parametrize(
    ("path", "writers", "readers", "norms", "sums"),
    [("llm/codelm/codelm.onnx", 13, 31, 13, 12), ("llm/codelm/codelm_outliers.onnx", 13, 31, 13, 12)],
)
def test_a_decoder_is_one_stream(zoo: Path, path: str, writers: int, readers: int, norms: int, sums: int) -> None:
    (stream,) = find_streams(clean(gp.load(zoo / path)).graph)
    counts = (len(stream.writers), len(stream.readers), len(stream.norms), stream.sums)
    assert counts == (writers, readers, norms, sums) and stream.width == 256 and stream.carried.blocks == []


def test_in_a_convolutional_network_every_stream_says_what_bends_it(zoo: Path) -> None:
    found = find_streams(clean(gp.load(zoo / "cifar10/resnet20.onnx")).graph)
    assert len(found) == 9 and all(any("Relu" in b.why for b in s.carried.blocks) for s in found)
