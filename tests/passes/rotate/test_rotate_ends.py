"""A stream that leaves the graph is turned back there, once, and the function stays."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.contracts import PassReport
from graphpress.pipeline import Pipeline
from graphpress.recipe import parse_passes
from tests import kit
from tests.passes.quantizing import model, normal
from tests.passes.rotating import deviation, double, torch_run

pytest.importorskip("torch")
WIDTH = 16
HELD = {
    "e": normal(30, WIDTH), "g": 1 + normal(WIDTH, seed=1) / 4, "g2": 1 + normal(WIDTH, seed=2) / 4,
    "b": normal(WIDTH, seed=3), "b2": normal(WIDTH, seed=4), "w1": normal(WIDTH, WIDTH, seed=5) / 4,
    "w2": normal(WIDTH, WIDTH, seed=6) / 4, "w3": normal(WIDTH, 5, seed=7),
    "axis": np.array([1]), "first": np.array(0),
}  # fmt: skip
RMS, LAYER = "RMSNormalization <axis = -1>", "LayerNormalization <axis = -1>"
STREAM = """x = Gather(e, ids) n = {norm}(x, {gain}) p = MatMul(n, w1) a = Relu(p) q = MatMul(a, w2) r = Add(x, q)
  z = {norm}(r, {last}) """
# What leaves -> (outputs, what is behind the last norm z, places turned back)
ENDS = {
    "nothing": ("float[N,T,5] h", "h = MatMul(z, w3)", 0),
    "normalised": ("float[N,T,5] h, float[N,T,16] y", "h = MatMul(z, w3) y = Identity(z)", 1),
    "mean": ("float[N,T,5] h, float[N,16] y", "h = MatMul(z, w3) y = ReduceMean <keepdims = 0> (z, axis)", 1),
    "first token": ("float[N,T,5] h, float[N,16] y", "h = MatMul(z, w3) y = Gather <axis = 1> (z, first)", 1),
    "bent": ("float[N,T,5] h, float[N,T,16] y", "h = MatMul(z, w3) y = Tanh(z)", 1),
    "two": (
        "float[N,T,5] h, float[N,16] y, float[N,T,16] t",
        "h = MatMul(z, w3) y = Gather <axis = 1> (z, first) t = Tanh(z)", 2,
    ),
}  # fmt: skip


def network(norm: str, outputs: str, body: str) -> ir.Model:
    gain, last = ("g, b", "g2, b2") if norm == LAYER else ("g", "g2")
    text = STREAM.format(norm=norm, gain=gain, last=last) + body
    held = {n: a for n, a in HELD.items() if f"{n})" in text or f"{n}," in text}
    shapes = ", ".join(
        f"{'int64' if a.dtype.kind == 'i' else 'float'}{list(a.shape) if a.shape else ''} {n}" for n, a in held.items()
    )
    made = model(
        f'<ir_version: 11, opset_import: ["" : 23]> g (int64[N,T] ids, {shapes}) => ({outputs}) {{ {text} }}', held
    )
    return kit.apply(made, *parse_passes("remove-identity,infer-shapes"))[0]


IDS = {"ids": np.random.default_rng(0).integers(0, 30, (2, 7))}


def rotated(made: ir.Model) -> tuple[ir.Model, PassReport, PassReport]:
    after, (folded, turned) = Pipeline(parse_passes("fold-norms,rotate")).run(made)
    return after, folded, turned


@pytest.mark.parametrize("norm", [RMS, LAYER])
@pytest.mark.parametrize("end", ENDS)
def test_it_is_turned_back_where_it_leaves(end: str, norm: str) -> None:
    outputs, body, places = ENDS[end]
    made = network(norm, outputs, body)
    after, folded, turned = rotated(made)
    assert folded.skips == [] and turned.skips == []
    assert turned.metrics["residual streams turned"] == 1
    assert turned.metrics.get("places turned back", 0) == places
    assert [o.name for o in after.graph.outputs] == [o.name for o in made.graph.outputs]
    wide = double(made)
    assert deviation(torch_run(wide, IDS), torch_run(rotated(wide)[0], IDS)) <= 1e-10
    assert deviation(kit.run(made, IDS), kit.run(after, IDS)) <= 1e-5


def test_the_stream_itself_may_leave() -> None:
    """An RMS stream, as it is and normalised."""
    made = network(RMS, "float[N,T,5] h, float[N,T,16] y, float[N,T,16] s", "h = MatMul(z, w3) y = Neg(z) s = Neg(r)")
    after, _, turned = rotated(made)
    assert turned.metrics["residual streams turned"] == 1
    assert deviation(kit.run(made, IDS), kit.run(after, IDS)) <= 1e-5


@pytest.mark.parametrize(
    ("outputs", "body", "why"),
    [
        ("float[N,T,5] h, float[N,T,16] y", "h = MatMul(z, w3) k = Add(z, q) y = Tanh(k)", "gain"),
        (
            "float[N,T,5] h, float[N,T,16] y1, float[N,T,16] y2, float[N,T,16] y3, float[N,T,16] y4",
            "h = MatMul(z, w3) y1 = Tanh(z) y2 = Exp(z) y3 = Abs(z) y4 = Sigmoid(z)", "Tanh",
        ),
    ],
)  # fmt: skip
def test_where_more_is_in_the_way_nothing_is_put_in(outputs: str, body: str, why: str) -> None:
    made = network(RMS, outputs, body)
    after, _, turned = rotated(made)
    assert "residual streams turned" not in turned.metrics
    assert any(why in s.why for s in turned.skips)
    assert not [n for n in after.graph if "turned_back" in (n.name or "")]
    assert deviation(kit.run(made, IDS), kit.run(after, IDS)) <= 1e-5


def test_a_norm_before_an_output_folds_its_gain_into_the_layers_and_keeps_it_there() -> None:
    made = network(LAYER, *ENDS["normalised"][:2])
    after, (report,) = Pipeline(parse_passes("fold-norms")).run(made)
    assert report.metrics["norms folded"] == 2
    for name, kept in (("y_gain", "g2"), ("y_bias", "b2")):
        np.testing.assert_array_equal(after.graph.initializers[name].const_value.numpy(), HELD[kept])
    assert deviation(kit.run(made, IDS), kit.run(after, IDS)) <= 1e-5
