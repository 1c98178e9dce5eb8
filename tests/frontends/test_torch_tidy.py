"""Operands of one form: each rule on the smallest graph, with the same numbers before and after."""

from __future__ import annotations

import numpy as np
import onnx_ir.passes.common as common
import pytest

from graphpress.frontends.torch_tidy import tidy
from graphpress.graph import edit
from tests import kit


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (
            "(float[4, 3] x) => (float[2, 3] y)"
            " <int64[1] s = {1}, int64[1] e = {3}, int64[1] a = {0}, int64[1] t = {1}> { y = Slice(x, s, e, a, t) }",
            ["Slice 4"],
        ),
        (
            "(float[4, 3] x) => (float[2, 3] y)"
            " <int64[1] s = {0}, int64[1] e = {4}, int64[1] a = {0}, int64[1] t = {2}> { y = Slice(x, s, e, a, t) }",
            ["Slice 5"],
        ),
        (
            "(float[4, 3] x) => (float[4, 3] y) <int64[1] s = {0}, int64[1] e = {9}, int64[1] a = {0}>"
            " { z = Slice(x, s, e, a) y = Relu(z) }",
            ["Relu 1"],
        ),
        (
            "(float[4] x, float[4] w) => (float[4] y) <int64[1] s = {1}, int64[1] e = {2}, int64[1] a = {-1}>"
            " { p = Unsqueeze(x, a) q = Unsqueeze(w, a) c = Concat<axis = -1>(p, q) z = Slice(c, s, e, a)"
            " t = Squeeze(z, a) y = Relu(t) }",
            ["Relu 1"],
        ),
        (
            "(float[4, 3] x) => (float[4, 2] y) <int64[1] s = {0}, int64[1] e = {2}, int64[1] a = {1}>"
            " { c = Concat<axis = 1>(x, x) z = Slice(c, s, e, a) y = Relu(z) }",
            ["Concat 2", "Slice 4", "Relu 1"],
        ),
        (
            "(float[2] x) => (float[4] y) <int64[2] p = {1, 1}, float v = {0}> { y = Pad(x, p, v) }",
            ["Pad 2"],
        ),
        (
            "(float[2] x) => (float[4] y) <int64[2] p = {1, 1}, float v = {2}> { y = Pad(x, p, v) }",
            ["Pad 3"],
        ),
        (
            "(float[4] x) => (float[2] y, float[2] z) <int64[2] n = {2, 2}> { y, z = Split(x, n) }",
            ["Split 1"],
        ),
        (
            "(float[4] x) => (float[1] y, float[3] z) <int64[2] n = {1, 3}> { y, z = Split(x, n) }",
            ["Split 2"],
        ),
        (
            "(float[4] x) => (float[4] y) { z = Concat<axis = 0>(x) y = Relu(z) }",
            ["Relu 1"],
        ),
        (
            "(float[1, 3] x) => (float[1, 3] y) <int64[2] n = {1, 3}> { z = Expand(x, n) y = Relu(z) }",
            ["Relu 1"],
        ),
    ],
)  # fmt: skip
def test_rule(before: str, expected: list[str]) -> None:
    model = kit.parse(f"g {before}")
    original = model.clone()
    tidy(model)
    common.RemoveUnusedNodesPass()(model)
    assert [f"{n.op_type} {len(n.inputs)}" for n in model.graph] == expected
    kit.assert_same_outputs(model, original)


def test_sizes_that_are_the_inputs_own_become_one() -> None:
    model = kit.parse("g (float[1, 3] x) => (float[5, 4, 3] y) <int64[3] n = {5, 4, 3}> { y = Expand(x, n) }")
    original = model.clone()
    tidy(model)
    assert edit.constant(next(iter(model.graph)).inputs[1]).tolist() == [5, 4, 1]  # type: ignore[union-attr]
    kit.assert_same_outputs(model, original)


def test_axes_are_counted_from_the_front() -> None:
    model = kit.parse("g (float[2, 1, 3, 1] x) => (float[2, 3] y) <int64[2] a = {-1, 1}> { y = Squeeze(x, a) }")
    original = model.clone()
    tidy(model)
    assert edit.constant(next(iter(model.graph)).inputs[1]).tolist() == [1, 3]  # type: ignore[union-attr]
    kit.assert_same_outputs(model, original)


def test_attributes_that_mean_nothing_go() -> None:
    model = kit.parse(
        """g (float[2, 3] x) => (float[3, 2] y) <int64[2] n = {3, 2}, float[3] w = {1, 1, 1}> {
            z = BatchNormalization<momentum = 0.5>(x, w, w, w, w)  y = Reshape<allowzero = 1>(z, n)
        }"""
    )
    original = model.clone()
    tidy(model)
    assert [list(n.attributes) for n in model.graph] == [[], []]
    kit.assert_same_outputs(model, original)


def test_truth_values_are_chosen_without_a_kernel_for_it() -> None:
    """ONNX Runtime has no Where of booleans."""
    model = kit.parse("g (bool[4, 2, 1] c, bool[4, 1, 2] a, bool[2] b) => (bool[4, 2, 2] y) { y = Where(c, a, b) }")
    tidy(model)
    bits = np.array([[i >> j & 1 for j in range(5)] for i in range(32)], bool)
    feeds = [
        (row[0].reshape(1, 1, 1).repeat(4, 0).repeat(2, 1), row[1:3].reshape(1, 1, 2).repeat(4, 0), row[3:])
        for row in bits
    ]
    for c, a, b in feeds:
        np.testing.assert_array_equal(kit.run(model, {"c": c, "a": a, "b": b})["y"], np.where(c, a, b))


def test_a_sum_of_truth_values_is_their_or() -> None:
    model = kit.parse("g (bool[2, 1] a, bool[2] b) => (bool[2, 2] y) { y = Add(a, b) }")
    tidy(model)
    a, b = np.array([[False], [True]]), np.array([False, True])
    np.testing.assert_array_equal(kit.run(model, {"a": a, "b": b})["y"], [[False, True], [True, True]])
