"""Streams that begin behind a norm with a gain of its own: a product at the start, where it is cheap."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.contracts import PassReport
from graphpress.keys import TURNS
from graphpress.pipeline import Pipeline
from graphpress.recipe import parse_passes
from tests import kit
from tests.passes.quantizing import context, model, normal
from tests.passes.rotating import deviation, double, torch_run

pytest.importorskip("torch")
WIDTH, HIDDEN = 16, 128
RMS, LAYER = "RMSNormalization <axis = -1>", "LayerNormalization <axis = -1>"
IDS = {"ids": np.random.default_rng(0).integers(0, 30, (2, 7))}
# What reads the embedding's norm z beside the stream -> (text behind it, outputs)
BESIDE = {
    "nothing": ("", ""),
    "a layer": ("k = MatMul(z, w)", ", float[N,T,5] k"),
    "an output": ("k = Identity(z)", ", float[N,T,16] k"),
}


def network(norm: str, beside: str = "nothing", last: str = "h = MatMul(y, w)", hidden: int = HIDDEN) -> ir.Model:
    """Embedding -> norm z -> norm -> MLP, and z carried around it -> norm y -> layer."""
    held = {"e": normal(30, WIDTH), "up": normal(WIDTH, hidden, seed=1) / 4, "down": normal(hidden, WIDTH, seed=2) / 4}
    held |= {"w": normal(WIDTH, 5, seed=3)} if "w)" in last + BESIDE[beside][0] else {}
    gains = []
    for i in range(3):
        held[f"g{i}"] = 1 + normal(WIDTH, seed=20 + i) / 4
        held |= {f"b{i}": normal(WIDTH, seed=40 + i)} if norm == LAYER else {}
        gains.append(f"g{i}, b{i}" if norm == LAYER else f"g{i}")
    text = f"""x = Gather(e, ids) z = {norm}(x, {gains[0]}) n = {norm}(z, {gains[1]}) p = MatMul(n, up) a = Relu(p)
      q = MatMul(a, down) r = Add(z, q) y = {norm}(r, {gains[2]})"""
    more, outputs = BESIDE[beside]
    shapes = ", ".join(f"float{list(a.shape)} {n}" for n, a in held.items())
    found = f'<ir_version: 11, opset_import: ["" : 23]> g (int64[N,T] ids, {shapes})'
    out = 5 if last.endswith("w)") else WIDTH
    made = model(f"{found} => (float[N,T,{out}] h{outputs}) {{ {text} {more} {last} }}", held)
    return kit.apply(made, *parse_passes("remove-identity,infer-shapes"))[0]


def rotated(made: ir.Model, options: str = "") -> tuple[ir.Model, PassReport, PassReport]:
    after, (folded, turned) = Pipeline(parse_passes(f"fold-norms{options},rotate")).run(made)
    return after, folded, turned


@pytest.mark.parametrize("norm", [RMS, LAYER])
@pytest.mark.parametrize("beside", BESIDE)
def test_one_product_begins_the_stream(norm: str, beside: str) -> None:
    made = network(norm, beside)
    after, folded, turned = rotated(made)
    assert folded.metrics["products at starts of streams"] == 1 and folded.skips == []
    assert turned.metrics["residual streams turned"] == 1
    assert [o.name for o in after.graph.outputs] == [o.name for o in made.graph.outputs]
    wide = double(made)
    assert deviation(torch_run(wide, IDS), torch_run(rotated(wide)[0], IDS)) <= 1e-10
    assert deviation(kit.run(made, IDS), kit.run(after, IDS)) <= 1e-5


@pytest.mark.parametrize("norm", [RMS, LAYER])
def test_the_product_is_gain_mean_and_basis(norm: str) -> None:
    """Its matrix is diag(gain) C Q, with C what takes the mean off and Q orthogonal; its bias is the norm's by C Q."""
    made = network(norm)
    folded, _ = Pipeline(parse_passes("fold-norms")).run(made)
    after, _, _ = rotated(made)
    begun, turned = (
        next(n.inputs[1].const_value.numpy().astype(np.float64) for n in m.graph if TURNS in n.metadata_props)
        for m in (folded, after)
    )
    gain = made.graph.initializers["g0"].const_value.numpy().astype(np.float64)
    centre = np.eye(WIDTH) - (1 / WIDTH if norm == LAYER else 0)
    np.testing.assert_allclose(begun, np.diag(gain) @ centre, atol=1e-6)
    np.testing.assert_allclose(turned @ turned.T, begun @ begun.T, atol=1e-5)
    assert np.abs(turned - begun).max() > 0.1
    if norm == LAYER:
        (bias,) = (n.inputs[1].const_value.numpy() for n in folded.graph if _adds(n))
        np.testing.assert_allclose(bias, made.graph.initializers["b0"].const_value.numpy() @ centre, atol=1e-5)


def _adds(node: ir.Node) -> bool:
    before = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    return node.op_type == "Add" and before is not None and TURNS in before.metadata_props


def test_a_stream_of_little_else_stays() -> None:
    """256 weights beside 256 of each layer of the MLP and 80 of the last one."""
    made = network(RMS, hidden=16)
    after, folded, turned = rotated(made)
    assert "products at starts of streams" not in folded.metrics and "residual streams turned" not in turned.metrics
    assert any("43% of its weights" in s.why for s in folded.skips)
    assert deviation(kit.run(made, IDS), kit.run(after, IDS)) <= 1e-5


@pytest.mark.parametrize(
    ("last", "options"),
    [
        ("t = Tanh(r) s = Exp(r) v = Abs(r) c = Sin(r) i = Add(t, s) j = Add(v, c) k = Sub(i, j) h = MatMul(k, w)", ""),
        ("h = MatMul(y, w)", "{starts=false}"),
    ],
)  # fmt: skip
def test_where_the_stream_cannot_turn_or_nobody_asks_nothing_is_put_in(last: str, options: str) -> None:
    made = network(RMS, last=last)
    after, folded, turned = rotated(made, options)
    assert "products at starts of streams" not in folded.metrics and "residual streams turned" not in turned.metrics
    assert not [n for n in after.graph if TURNS in n.metadata_props]
    assert deviation(kit.run(made, IDS), kit.run(after, IDS)) <= 1e-5


def test_a_plain_norm_needs_no_product() -> None:
    """Without gain and bias a LayerNormalization writes what is centred already."""
    made = network(LAYER)
    for name, value in made.graph.initializers.items():
        if name[0] in "gb":
            whole = np.full(value.shape.numpy(), float(name[0] == "g"), np.float32)
            value.const_value = ir.tensor(whole, name=name)
    after, folded, turned = rotated(made)
    assert "products at starts of streams" not in folded.metrics
    assert folded.metrics["norms made RMSNormalization"] == 3 and turned.metrics["residual streams turned"] == 1
    assert deviation(kit.run(made, IDS), kit.run(after, IDS)) <= 1e-5


@pytest.mark.parametrize("norm", [RMS, LAYER])
def test_a_last_norm_that_is_only_an_output_lets_its_stream_turn(norm: str) -> None:
    made = network(norm, last="h = Identity(y)")
    after, folded, turned = rotated(made)
    assert folded.metrics["norms folded"] == 3 and turned.metrics["residual streams turned"] == 1
    assert turned.metrics["places turned back"] == 1
    assert deviation(kit.run(made, IDS), kit.run(after, IDS)) <= 1e-5


def test_products_on_the_stream_stay_float_and_the_witness_is_measured() -> None:
    made = network(LAYER, "an output", last="h = Identity(y)")
    passes = parse_passes("fold-norms,rotate,quantize{mode=dynamic,weight=int4}")
    after, reports = Pipeline(passes).run(made, context(IDS))
    assert reports[1].metrics["residual streams turned"] == 1 and reports[1].metrics["largest deviation"] < 1e-5
    kept = [n for n in after.graph if TURNS in n.metadata_props]
    assert [n.metadata_props[TURNS] for n in kept] == ["on", "back"]
    assert {s.where for s in reports[2].skips if "basis of a residual stream" in s.why} == {n.name for n in kept}
    assert all(n.inputs[1].is_initializer() and n.inputs[0].producer().op_type != "DequantizeLinear" for n in kept)
