"""The report says what was left float and why, names degenerate scales, and is plain JSON whatever the figures are."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress.job.gate import GateResult, OutputCheck
from graphpress.passes.quantize.quantize import Quantize
from graphpress.recipe import Recipe
from graphpress.report import report as reports
from graphpress.report.report import Report, SiteRow
from tests import kit

TEXT = """
g (float[N, 4] x, float[N, 4] z, float[4, 4] w, float[4, 4] v) => (float[N, 4] y, float[N, 4] q) {
  [plain] y = MatMul(x, w)
  [zeros] q = MatMul(z, v)
}"""


def model() -> ir.Model:
    made = kit.parse(TEXT)
    weights = {"w": np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32), "v": np.eye(4, dtype=np.float32)}
    weights["w"][:, 2] = 0
    for value in list(made.graph.inputs[2:]):
        made.graph.inputs.remove(value)
        value.const_value = ir.tensor(weights[value.name], name=value.name)
        made.graph.register_initializer(value)
    return made


def compiled(**options) -> Report:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 4)).astype(np.float32)
    x[0, 0] = 50.0  # what mse leaves outside
    data = {"x": x, "z": np.zeros((40, 4), np.float32)}
    recipe = Recipe("r", (Quantize(**options),), gate=gp.Recipe.load("w4a8").gate)
    return gp.compile(model(), recipe, data, prove=False)[1]


def test_degenerate_scales_are_named_with_their_sites() -> None:
    found = {w.where: w.why for w in compiled().warnings}
    assert found["zeros"] == "'z' was zero on all calibration data"
    assert found["plain[1] weight"] == "1 of 4 channels are all zero: 2"
    assert json.loads(json.dumps(compiled().to_json()))["warnings"]


def test_saturated_activations_are_named() -> None:
    found = {w.where: w.why for w in compiled(observer="percentile:60").warnings}
    assert "outside the range" in found["plain[0] activation"]


def test_coverage_counts_sites_weights_and_multiply_adds() -> None:
    rows = [
        SiteRow("a", "Conv", "int8", weights=30, verdict="integer", macs=70),
        SiteRow("b", "Conv", weights=10, verdict="float", macs=20),
        SiteRow("c", "Gather", "int8", weights=60, verdict="weight-only", macs=10),
    ]
    found = Report(sites=rows).coverage()
    assert (found.sites, found.weights, found.macs) == (2 / 3, 0.9, 0.8)
    assert Report(sites=rows[:0]).coverage() == reports.Coverage(0.0, 0.0, None)


def test_json_has_no_infinity() -> None:
    odd = Report(
        sites=[SiteRow("a", "Conv", sqnr=math.inf)],
        gate=GateResult([OutputCheck("y", -math.inf, math.nan, math.inf)], failures=["y"], blame=[("a", math.inf)]),
    )
    text = json.dumps(odd.to_json(), allow_nan=False)
    back = json.loads(text)
    assert back["sites"][0]["sqnr"] is None
    assert back["gate"]["blame"] == [["a", None]]
    assert back["gate"]["passed"] is False


def test_bytes_of_tensors_are_counted_once() -> None:
    made = model()
    assert reports.stored_bytes(made) == 2 * 16 * 4
    again = made.clone()
    next(iter(again.graph)).graph.register_initializer(
        ir.Value(name="same", const_value=again.graph.initializers["w"].const_value)
    )
    assert reports.stored_bytes(again) == 2 * 16 * 4


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fragile", ["one", "two", "three"])
def test_the_gate_blames_the_site_that_fails_it(fragile: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    text = """
    g (float[N, 8] x, float[8, 8] a, float[8, 8] b, float[8, 8] c) => (float[N, 8] y) {
      [one] p = MatMul(x, a) [t] q = Tanh(p) [two] r = MatMul(q, b) [u] s = Tanh(r) [three] y = MatMul(s, c)
    }"""
    made = kit.parse(text)
    for value in list(made.graph.inputs[1:]):
        made.graph.inputs.remove(value)
        value.const_value = ir.tensor(rng.normal(size=(8, 8)).astype(np.float32), name=value.name)
        made.graph.register_initializer(value)
    gate = gp.Recipe.load("w8a8").set(["gate.min_sqnr=25"]).gate
    recipe = Recipe("r", (Quantize(mode="weight", sites={fragile: "int2"}),), gate=gate)
    with pytest.raises(gp.GateError, match=rf"Sites most to blame: {fragile} \(") as caught:
        gp.compile(made, recipe, {"x": rng.normal(size=(50, 8)).astype(np.float32)}, prove=False)
    assert caught.value.report.gate.blame[0][0] == fragile


def test_coverage_counts_integer_weight_only_and_float_apart() -> None:
    rows = [
        SiteRow("a", "Conv", "weight[1] int8", weights=30, verdict="integer", macs=70),
        SiteRow("b", "Conv", "weight[1] int8", weights=10, verdict="fallback", macs=20),
        SiteRow("c", "Gather", "weight[1] int8", weights=60, verdict="weight-only", macs=10),
    ]
    assert Report(sites=rows).coverage().kinds == {
        "integer": {"sites": 1 / 3, "weights": 0.3, "macs": 0.7},
        "weight-only": {"sites": 1 / 3, "weights": 0.6, "macs": 0.1},
        "float": {"sites": 1 / 3, "weights": 0.1, "macs": 0.2},
    }
    meant = [SiteRow("a", "Conv", "activation[0] uint8; weight[1] int8"), SiteRow("b", "Conv", "weight[1] int8")]
    assert [s.kind for s in (*meant, SiteRow("c", "Conv"))] == ["integer", "weight-only", "float"]


def test_a_site_that_no_pass_decided_about_says_why_and_bodies_of_the_dialect_are_no_sites() -> None:
    made = kit.parse(
        """<ir_version: 10, opset_import: ["" : 21, "graphpress" : 1]>
        g (int64[2] i, float[2,2] x) => (float[2,2] y, float[2,300] e) <float[9,300] t = {0.5}> {
            [scores] m = MatMul(x, x) [turn] y = graphpress.Turn(m) [embed] e = Gather(t, i)
        }
        <domain: "graphpress", opset_import: ["" : 21]> Turn (a) => (b) { [inner] b = MatMul(a, a) }""".replace(
            "{0.5}", "{" + ",".join(["0.5"] * 2700) + "}"
        )
    )
    rows = {r.node: r.skip for r in reports.site_rows(made, made, [])}
    assert set(rows) == {"scores", "embed"}
    assert "two computed values" in rows["scores"]
    assert "an embedding" in rows["embed"]
