"""Layers at the ends of a model."""

from __future__ import annotations

from graphpress.passes.structure.layers.outermost import first_layers, last_layers
from tests.passes.quantizing import model, normal

TEXT = """
g (float[N, 4] x, int64[N] i, bool go, float[4, 4] a, float[4, 4] b, float[4, 4] c, float[9, 4] t, float[4, 4] d)
    => (float[N, 4] y, float[N, 4] z) {
    p = MatMul(x, a)
    q = Gather(t, i)
    r = Add(p, q)
    s = MatMul(r, b)
    k = Softmax(s)
    y = MatMul(k, c)
    v = Relu(x)
    z = MatMul(v, d)
}
"""


def test_first_read_nothing_of_others_and_last_lead_to_none() -> None:
    made = model(TEXT, {n: normal(9 if n == "t" else 4, 4) for n in "abctd"})
    weights = [[n.inputs[n.op_type != "Gather"].name for n in f(made.graph)] for f in (first_layers, last_layers)]
    assert weights == [["a", "t", "d"], ["c", "d"]]


def test_what_stands_in_bodies_counts_where_the_body_stands() -> None:
    made = model(
        """
g (float[N, 4] x, bool go, float[4, 4] a, float[4, 4] b) => (float[N, 4] y) {
    h = If (go) <then_branch = one () => (float[N, 4] u) { u = MatMul(x, a) },
                 else_branch = two () => (float[N, 4] w) { w = Identity(x) }>
    y = MatMul(h, b)
}
""",
        {"a": normal(4, 4), "b": normal(4, 4)},
    )
    assert first_layers(made.graph) == [] and [n.inputs[1].name for n in last_layers(made.graph)] == ["b"]
