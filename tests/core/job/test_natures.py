"""What outputs are taken for, from small graphs and what they give."""

from __future__ import annotations

import numpy as np
import pytest

from graphpress.job.natures import Form, Kind, Nature, find
from tests import kit

RNG = np.random.default_rng(0)


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def nature(body: str, seen: np.ndarray, said: str = "", name: str = "y", given: str = "float[N, 8] x") -> Nature:
    """Of the output ``name`` of a graph that is written as ``body`` and gave ``seen``."""
    dims = ", ".join(["N", *map(str, seen.shape[1:])])
    model = kit.parse(f"g ({given}) => (float[{dims}] {name}) {{ {body} }}")
    return find(model, {name: seen.astype(np.float32)}, {name: said} if said else {})[name]


def logits(*shape: int, scale: float = 3.0) -> np.ndarray:
    return RNG.normal(size=shape) * scale


W = "w = ConstantOfShape(s) "


@pytest.mark.parametrize(
    ("body", "seen", "expected"),
    [
        ("y = Softmax(x)", softmax(logits(16, 10), 1), Nature(Kind.CLASSES, 1, Form.PROBABILITIES)),
        ("y = LogSoftmax(x)", np.log(softmax(logits(16, 10), 1)), Nature(Kind.CLASSES, 1, Form.LOGARITHMS)),
        ("a = Softmax(x) y = Identity(a)", softmax(logits(16, 2), 1), Nature(Kind.CLASSES, 1, Form.PROBABILITIES)),
        ("y = Softmax <axis=1> (x)", softmax(logits(4, 5, 6, 6), 1), Nature(Kind.CLASSES, 1, Form.PROBABILITIES)),
        ("y = Softmax(x)", softmax(logits(4, 7, 5), 2), Nature(Kind.CLASSES, 2, Form.PROBABILITIES)),
        ("y = MatMul(x, x)", logits(16, 10), Nature(Kind.CLASSES, 1, sure=False)),
        ("y = MatMul(x, x)", logits(16, 1) + logits(16, 4, scale=0.02), Nature(Kind.VALUES)),  # columns move together
        ("y = MatMul(x, x)", logits(16, 1), Nature(Kind.VALUES)),
        ("y = MatMul(x, x)", logits(16, 2), Nature(Kind.VALUES)),
        ("y = MatMul(x, x)", logits(4, 9, 80), Nature(Kind.VALUES)),  # a spectrogram
        ("y = Conv(x, x)", logits(2, 3, 8, 8), Nature(Kind.VALUES)),  # a picture
        ("y = Relu(x)", np.abs(logits(16, 10)), Nature(Kind.VALUES)),
        ("y = Sigmoid(x)", 1 / (1 + np.exp(-logits(16, 5))), Nature(Kind.FLAGS)),
        ("y = Sigmoid(x)", 1 / (1 + np.exp(-logits(2, 1, 8, 8))), Nature(Kind.FLAGS)),
        ("a = Sigmoid(x) y = ReduceMean(a)", 1 / (1 + np.exp(-logits(16, 1))), Nature(Kind.FLAGS)),
        ("y = ReduceMean(x)", logits(16, 384), Nature(Kind.EMBEDDING)),
        ("y = ReduceMean(x)", logits(16, 2), Nature(Kind.VALUES)),
        ("y = LpNormalization(x)", logits(16, 384), Nature(Kind.EMBEDDING)),
        ("y = LayerNormalization(x, x)", logits(4, 9, 64), Nature(Kind.VALUES)),  # hidden states
        ("y = Add(x, x)", np.zeros((4, 10)), Nature(Kind.VALUES)),
        ("y = Add(x, x)", np.zeros((4, 0)), Nature(Kind.VALUES)),
        ("y = Neg(x)", logits(7), Nature(Kind.VALUES)),
    ],
)
def test_from_the_graph_and_the_numbers(body: str, seen: np.ndarray, expected: Nature) -> None:
    assert nature(body, seen) == expected


@pytest.mark.parametrize(
    "moves",
    [
        "y = Slice(a, from, to)",
        "b = Transpose <perm = [0, 1]> (a) c = Slice(b, from, to) y = Identity(c)",
        "b, c = Split <axis = 0, num_outputs = 2> (a) y = Identity(b)",
        "y = Gather <axis = 0> (a, from)",
        "b = Reshape(a, to) y = Expand(b, to)",
    ],
)
def test_what_moves_scores_of_classes_does_not_hide_them(moves: str) -> None:
    model = kit.parse(
        "g (float[N, 8] x, float[8, 10] w) => (float[N, 10] y) <int64[1] from = {0}, int64[1] to = {9}>"
        f" {{ a = MatMul(x, w) {moves} }}"
    )
    assert find(model, {"y": logits(16, 10).astype(np.float32)})["y"] == Nature(Kind.CLASSES, 1, sure=False)


def test_rows_of_a_table_are_no_scores() -> None:
    model = kit.parse(
        "g (int64[N] x) => (float[N, 10] y) <float[1, 10] w = {1,2,3,4,5,6,7,8,9,0}> { y = Gather(w, x) }"
    )
    assert find(model, {"y": logits(16, 10).astype(np.float32)})["y"].kind == Kind.VALUES


def test_a_vector_of_length_one_is_an_embedding() -> None:
    seen = logits(16, 32)
    assert nature("y = Div(x, x)", seen / np.linalg.norm(seen, axis=1, keepdims=True)).kind is Kind.EMBEDDING


def test_names_and_tokens_tell_logits_from_features() -> None:
    assert nature("logits = MatMul(x, x)", logits(16, 2), name="logits") == Nature(Kind.CLASSES)
    assert nature("logits = MatMul(x, x)", logits(4, 9, 30), name="logits") == Nature(Kind.CLASSES, 2)
    assert nature("y = MatMul(t, t)", logits(4, 9, 30), given="int64[N, 9] x, float[N, 8] t") == Nature(Kind.CLASSES, 2)
    state = nature("y = Mul(t, t)", logits(2, 16, 30), given="int64 rate, float[N, 8] t")
    assert state == Nature(Kind.VALUES)  # of a recurrent layer: a number that is no token came in
    assert nature("pooler_output = Mul(x, x)", logits(16, 30), name="pooler_output").kind is Kind.EMBEDDING


def test_what_the_user_says_comes_first() -> None:
    assert nature("y = MatMul(x, x)", logits(16, 10), said="values") == Nature(Kind.VALUES)
    assert nature("y = Relu(x)", logits(4, 9, 30), said="classes") == Nature(Kind.CLASSES, 2)
    assert nature("y = Relu(x)", logits(16, 30), said="embedding").kind is Kind.EMBEDDING
    table = np.concatenate([320 * boxes(2, 400), np.full((2, 400, 3), 0.02)], -1)
    assert nature("y = Relu(x)", table, said="boxes") == Nature(Kind.BOXES, 2, boxes="y")


def boxes(samples: int, rows: int) -> np.ndarray:
    corner = RNG.uniform(0, 0.8, (samples, rows, 2))
    return np.concatenate([corner, corner + RNG.uniform(0.05, 0.2, corner.shape)], -1)


def test_scores_and_corners_of_the_same_rows_are_a_detector() -> None:
    model = kit.parse("g (float[N, 8] x) => (float[N, 60, 2] s, float[N, 60, 4] c) { s = Softmax(x) c = Neg(x) }")
    found = find(model, {"s": softmax(logits(3, 60, 2), 2).astype(np.float32), "c": boxes(3, 60).astype(np.float32)})
    assert found == {"s": Nature(Kind.BOXES, 2, boxes="c"), "c": Nature(Kind.BOXES, 2)}
    few = {"s": softmax(logits(3, 20, 2), 2).astype(np.float32), "c": boxes(3, 20).astype(np.float32)}
    assert {n.kind for n in find(model, few).values()} == {Kind.CLASSES, Kind.VALUES}


@pytest.mark.parametrize("axis", [1, 2])
def test_rows_that_hold_a_box_and_scores_are_a_detector(axis: int) -> None:
    scores = 1 / (1 + np.exp(-logits(2, 400, 6) + 8))
    seen = np.moveaxis(np.concatenate([320 * boxes(2, 400), scores], -1), 2, axis)
    assert nature("y = Concat <axis=1> (x, x)", seen) == Nature(Kind.BOXES, axis, boxes="y")


def test_outputs_that_are_no_floats_are_left_out() -> None:
    model = kit.parse("g (float[N, 8] x) => (int64[N] i) { i = ArgMax(x) }")
    assert find(model, {"i": np.zeros(4, np.int64)}) == {}
