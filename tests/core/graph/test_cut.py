"""Parts of a model: what bounds them, and that they compute what the whole does there."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.backends import reference
from graphpress.errors import BadRequest, StaleSite
from graphpress.graph.cut import Boundary, boundary, cut
from graphpress.passes.clean.infer_shapes import InferShapes
from tests import kit

NETWORK = """
g (float[2, 4] x, bool c) => (float[2, 4] y, float[2, 4] z, float[2, 4] untouched)
<float[4] k = {1, 2, 3, 4}> {
    a = Relu(x)
    b = Mul(a, k)
    d = Exp(x)
    untouched = Neg(d)
    e = Add(b, d)
    y = If(c) <then_branch = t () => (float[2, 4] u) { u = Add(e, d) },
               else_branch = f () => (float[2, 4] v) { v = Sub(e, a) }>
    z = Mul(b, b)
}
"""


def network() -> ir.Model:
    return kit.apply(kit.parse(NETWORK), InferShapes())[0]


def test_the_rest_behind_a_value_computes_the_outputs_that_depend_on_it() -> None:
    model = network()
    edge = boundary(model, ["b"])
    assert edge.inputs[0] == "b"
    assert set(edge.inputs) == {"b", "d", "c", "a"}  # a and d are captured by the branches
    assert edge.outputs == ("y", "z")
    feeds = kit.random_feeds(model)
    for condition in (True, False):
        feeds["c"] = np.array(condition)
        whole = kit.run(model, feeds)
        values = reference.execute(model, ["a", "b", "d"])(feeds) | feeds
        rest = reference.execute(cut(model, edge.inputs, edge.outputs))
        got = rest({n: values[n] for n in rest.input_names})
        assert list(got) == ["y", "z"]
        for name in got:
            np.testing.assert_array_equal(got[name], whole[name])


def test_an_output_that_is_cut_at_needs_nothing_else() -> None:
    model = network()
    assert boundary(model, ["z"]) == Boundary(("z",), ("z",))


def test_a_part_shares_constants_and_leaves_the_model_alone() -> None:
    model = network()
    before = kit.structure(model)
    part = cut(model, ["a"], ["b"])
    assert kit.ops(part) == ["Mul"]
    assert part.graph.initializers["k"].const_value is model.graph.initializers["k"].const_value
    assert kit.structure(model) == before


def test_values_that_are_not_there_and_parts_that_are_not_bounded_are_refused() -> None:
    model = network()
    with pytest.raises(StaleSite, match="Did you mean 'untouched'"):
        cut(model, ["untouchd"], ["y"])
    with pytest.raises(BadRequest, match=r"'a'.*infer-shapes"):
        cut(kit.parse(NETWORK), ["a"], ["b"])
    with pytest.raises(BadRequest, match="bound"):
        cut(model, ["a"], ["e"])
