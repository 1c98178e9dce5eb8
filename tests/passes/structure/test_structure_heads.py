"""Attention heads and MLP pairs, fused and written out, and the weights that values come from and go to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import graphpress as gp
from graphpress.passes.structure.channels.commuting import survey
from graphpress.passes.structure.channels.follow import by_node
from graphpress.passes.structure.channels.lanes import varying
from graphpress.passes.structure.channels.moves import Move
from graphpress.passes.structure.layers.heads import before_copies, find_heads
from graphpress.passes.structure.layers.norms import find_norms
from graphpress.passes.structure.layers.pairs import find_pairs
from tests.passes.rotating import clean, weighted

WEIGHTS = {"wq": (8, 8), "wk": (8, 4), "wv": (8, 4), "wo": (8, 8), "wqkv": (8, 24)}
SIZES = """
    many = Constant <value_ints = [2, 3, 4, 2]> () few = Constant <value_ints = [2, 3, 2, 2]> ()
    back = Constant <value_ints = [2, 3, 8]> () copies = Constant <value_ints = [2, 2, 2, 3, 2]> ()
    each = Constant <value_ints = [2, 4, 3, 2]> () two = Constant <value_ints = [2]> ()
    rows = Constant <value_ints = [2, 3, 4, 6]> () third = Constant <value_ints = [2, 2, 2]> ()
"""
NORMED = """last = Constant <value_ints = [-1]> () s = Mul(x, x) m = ReduceMean(s, last) r = Sqrt(m)
    i = Reciprocal(r) n = Mul(x, i) y = MatMul(n, wq)"""
PROJECT = f"""{SIZES}
    q0 = MatMul(x, wq) k0 = MatMul(x, wk) v0 = MatMul(x, wv)
    q1 = Reshape(q0, many) k1 = Reshape(k0, few) v1 = Reshape(v0, few)
    q = Transpose <perm = [0,2,1,3]> (q1) k2 = Transpose <perm = [0,2,1,3]> (k1) v2 = Transpose <perm = [0,2,1,3]> (v1)
"""
REPEAT = """
    k3 = Unsqueeze(k2, two) k4 = Expand(k3, copies) k = Reshape(k4, each)
    v3 = Unsqueeze(v2, two) v4 = Expand(v3, copies) v = Reshape(v4, each)
"""
OUT = "o1 = Transpose <perm = [0,2,1,3]> (o) o2 = Reshape(o1, back) y = MatMul(o2, wo)"
SOFTMAX = "s1 = Mul(s, s0) p = Softmax <axis = -1> (s1) o = MatMul(p, v)"
FLAT = "o2 = Attention <q_num_heads = 4, kv_num_heads = 2> (q0, k0, v0)"
SCALE = "s0 = Constant <value = float {0.5}> ()"
FORMS = {
    "Attention, grouped": f"{PROJECT} o = Attention(q, k2, v2) {OUT}",
    "Attention, 3 axes": f"{PROJECT} {FLAT} y = MatMul(o2, wo)",
    "softmax": f"{PROJECT} {REPEAT} {SCALE} t = Transpose <perm = [0,1,3,2]> (k) s = MatMul(q, t) {SOFTMAX} {OUT}",
}


def graph(body: str):
    return weighted(body, WEIGHTS, "float[2,3,8] x").graph


@pytest.mark.parametrize("form", FORMS)
def test_values_come_from_one_layer_and_go_to_another(form: str) -> None:
    found = graph(FORMS[form])
    (heads,) = find_heads(found)
    assert (heads.size, heads.value_size, heads.count) == (2, 2, 4)
    carried = heads.values(survey(found, Move.ROTATE, by_node(find_norms(found))))
    assert carried.blocks == []
    ends = {
        h.side: (h.node.inputs[1].name, varying(h.lanes)[0] - h.lanes.ndim, carried.extent, h.lanes.size)
        for h in carried.holders
    }
    assert ends == {"writer": ("wv", -1, 2, 4), "reader": ("wo", -2, 2, 8)}
    assert all((h.lanes.ravel() % 2 == np.arange(h.lanes.size) % 2).all() for h in carried.holders)


@pytest.mark.parametrize("form", FORMS)
def test_queries_and_keys_are_turned_before_they_are_moved_and_copied(form: str) -> None:
    (heads,) = find_heads(graph(FORMS[form]))
    edges = [before_copies(*edge, heads.size) for edge in (heads.query, heads.key)]
    assert [node.inputs[slot].name for node, slot in edges] == ["q0", "k0"]


def test_values_cut_from_a_common_projection_are_part_of_its_columns() -> None:
    body = f"""{SIZES} a = MatMul(x, wqkv) b = Reshape(a, rows) c = Transpose <perm = [0,2,1,3]> (b)
        q, k, v = Split <axis = 3> (c, third) o = Attention(q, k, v) {OUT}"""
    found = graph(body)
    (heads,) = find_heads(found)
    carried = heads.values(survey(found, Move.ROTATE, by_node(find_norms(found))))
    (writer,) = carried.writers
    assert carried.blocks == [] and writer.node.inputs[1].name == "wqkv"
    assert writer.lanes.ravel().tolist() == [-1, -1, -1, -1, 0, 1] * 4  # every third pair of columns


def test_parts_of_an_axis_stay_apart() -> None:
    """q, k and v beside one another: only the last third of the weight's columns belongs to the values."""
    body = f"""{SIZES} thirds = Constant <value_ints = [8, 8, 8]> () a = MatMul(x, wqkv)
        q0, k0, v0 = Split <axis = -1> (a, thirds) r = Sigmoid(q0)
        o2 = Attention <q_num_heads = 4, kv_num_heads = 4> (r, k0, v0) y = MatMul(o2, wo)"""
    found = graph(body)
    (heads,) = find_heads(found)
    carried = heads.values(survey(found, Move.ROTATE, by_node(find_norms(found))))
    places = {h.side: np.flatnonzero(h.lanes.ravel() >= 0).tolist() for h in carried.holders}
    assert carried.blocks == [] and places == {"writer": [*range(16, 24)], "reader": [*range(8)]}


def test_a_cache_keeps_values_as_they_are() -> None:
    body = f"{PROJECT} o, pk, pv = Attention(q, k2, v2, , ek, ev) {OUT} z = Identity(pv)"
    model = weighted(body, WEIGHTS, "float[2,3,8] x, float[2,2,5,2] ek, float[2,2,5,2] ev")
    (heads,) = find_heads(model.graph)
    assert "cache" in heads.values(survey(model.graph, Move.ROTATE)).blocks[0].why


@pytest.mark.parametrize(
    "body", ["y = MatMul(x, wq)", "a = Relu(x) t = Transpose <perm = [0,2,1]> (a) y = MatMul(a, t)"]
)
def test_products_without_softmax_are_no_heads(body: str) -> None:
    assert find_heads(graph(body)) == []


@pytest.mark.parametrize(
    ("body", "widths"),
    [
        ("h = MatMul(x, wq) a = Relu(h) y = MatMul(a, wo)", [8]),
        ("h = MatMul(x, wq) s = Sigmoid(h) a = Mul(h, s) g = MatMul(x, wo) b = Mul(a, g) y = MatMul(b, wv)", [8]),
        ("h = MatMul(x, wq) a = Gelu(h) c = Identity(a) m = MatMul(c, wo) n = MatMul(c, wk) y = Sum(m, m)", [8]),
        ("h = MatMul(x, wq) y = MatMul(h, wo)", []),
        (NORMED, []),
        ("h = MatMul(x, wq) a = Add(h, x) y = MatMul(a, wo)", []),
    ],
)
def test_pairs(body: str, widths: list[int]) -> None:
    assert [p.width for p in find_pairs(graph(body))] == widths


def test_heads_and_pairs_of_the_code_model(zoo: Path) -> None:
    found = clean(gp.load(zoo / "llm/codelm/codelm.onnx")).graph
    heads, pairs = find_heads(found), find_pairs(found)
    assert [(h.size, h.count) for h in heads] == [(32, 8)] * 6
    assert [p.width for p in pairs] == [704] * 6 and np.unique([len(p.down) for p in pairs]) == [1]
