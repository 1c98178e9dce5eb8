"""Noise by site against numpy, on graphs where it is known which site brings it."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.backends import reference
from graphpress.context import Context
from graphpress.graph import edit
from graphpress.observe.data import CalibrationData
from graphpress.passes.fold.absorb_clip import AbsorbClip
from graphpress.passes.fold.cancel_qdq import CancelQdq
from graphpress.passes.fold.move_qdq import MoveQdq
from graphpress.passes.fold.share_scales import ShareScales
from graphpress.passes.quantize.quantize import Quantize
from graphpress.pipeline import Pipeline
from graphpress.report import diagnosis
from graphpress.report import report as reports
from tests import kit

CHAIN = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[N, 2, 6, 6] x, bool c) => (float[N, 2, 6, 6] y) <
  float[2, 2, 1, 1] w1 = {1.5, -0.7, 0.3, 0.9}, float[2, 2, 1, 1] w2 = {0.8, 0.2, -0.6, 1.1}
> {
  [one] a = Conv(x, w1)
  [relu] b = Relu(a)
  [if] d = If (c) <
    then_branch = t () => (float[N, 2, 6, 6] tt) { [inner] ti = Conv(b, w2) [tneg] tt = Neg(ti) },
    else_branch = e () => (float[N, 2, 6, 6] ee) { [other] ei = Conv(b, w1) [eneg] ee = Neg(ei) }
  >
  [last] y = Conv(d, w1)
}"""


def quantized(text: str, data: dict[str, np.ndarray], extra: tuple = (), **options):
    model = kit.parse(text)
    bound = CalibrationData.from_arrays(data).bind(model)
    ctx = Context(data=bound, run=reference.execute, oracle=reference.execute)
    after, passes = Pipeline([Quantize(**options), AbsorbClip(), *extra]).run(model, ctx)
    rows = reports.site_rows(model, after, passes)
    diagnosis.measure(model, after, rows, next(iter(bound.batches(4))), reference.execute)
    return model, after, passes, {r.node: r for r in rows}


def data(c: bool = True, n: int = 16) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).normal(size=(n, 2, 6, 6)).astype(np.float32), "c": np.asarray(c)}


def test_sqnr_is_that_of_the_values_behind_an_absorbed_relu_and_inside_a_branch() -> None:
    given = data()
    _, _, _, rows = quantized(CHAIN, given)
    for name in ("one", "inner", "last"):
        assert 25 < rows[name].sqnr < 60, name  # 8 bits give some 40 dB; a float Conv beside its clipped one gives 0
    assert rows["other"].sqnr is None
    assert "branch" in rows["other"].unmeasured


def test_sqnr_of_the_last_site_is_that_of_the_outputs() -> None:
    given = data()
    model, after, _, rows = quantized(CHAIN, given, mode="weight", weight="int4")
    feeds = {"x": given["x"][:4], "c": given["c"]}
    u, v = (kit.run(m, feeds)["y"].astype(np.float64) for m in (model, after))
    noise = ((u - v) ** 2).sum() / (u**2).sum()
    assert rows["last"].sqnr == pytest.approx(-10 * math.log10(noise), abs=1e-6)
    assert 0 <= rows["last"].added < noise
    assert rows["one"].added > 0


@pytest.mark.parametrize("guilty", ["one", "inner", "last"])
def test_the_site_that_brings_the_noise_is_blamed_not_those_behind_it(guilty: str) -> None:
    _, _, _, rows = quantized(CHAIN, data(), sites={guilty: "int2"})
    assert diagnosis.blame(rows.values())[0][0] == guilty


def test_histograms_of_the_worst_sites_come_first() -> None:
    _, _, passes, rows = quantized(CHAIN, data())
    found = diagnosis.worst_histograms(list(rows.values()), passes[0].histograms, 3)
    worst = min((r for r in rows.values() if r.sqnr is not None), key=lambda r: r.sqnr).node
    assert len(found) == 3
    assert next(iter(found)).startswith(worst)
    for h in found.values():
        end = h["start"] + h["width"] * len(h["counts"])
        assert h["start"] <= h["min"] <= h["max"] <= end
        assert sum(h["counts"]) > 0


def test_weights_stand_in_where_no_activation_was_seen() -> None:
    model, _, _, rows = quantized(CHAIN, data(), mode="weight", weight="int4")
    seen = diagnosis.weight_histograms(model, rows.values())
    found = diagnosis.worst_histograms(list(rows.values()), seen)
    worst = min((r for r in rows.values() if r.sqnr is not None), key=lambda r: r.sqnr).node
    assert next(iter(found)) == f"{worst}[1] weight"
    assert {sum(h["counts"]) for h in found.values()} == {4}
    assert (found["one[1] weight"]["min"], found["one[1] weight"]["max"]) == pytest.approx((-0.7, 1.5))


def test_what_moves_as_integers_is_compared_as_floats() -> None:
    text = """
    g (float[N, 2, 6, 6] x) => (float[N, 2, 6, 6] y) <float[2, 2, 1, 1] w = {1.5, -0.7, 0.3, 0.9}> {
      [one] a = Conv(x, w) [relu] b = Relu(a)
      [swap] c = Transpose <perm = [0, 1, 3, 2]> (b) [back] d = Transpose <perm = [0, 1, 3, 2]> (c)
      [two] y = Conv(d, w)
    }"""
    _, after, _, rows = quantized(text, {"x": data()["x"]}, extra=(ShareScales(), MoveQdq(), CancelQdq()))
    moved = edit.find(after, "back").inputs[0]
    assert moved is not None
    assert moved.dtype == ir.DataType.UINT8
    assert all(25 < rows[n].sqnr < 60 for n in ("one", "swap", "back", "two"))


def test_sites_that_are_gone_say_so() -> None:
    model = kit.parse(CHAIN)
    rows = [reports.SiteRow("one", "Conv"), reports.SiteRow("gone", "Conv")]
    diagnosis.measure(model, model, rows, next(iter(CalibrationData.from_arrays(data()).bind(model).batches(2))), reference.execute)  # fmt: skip # noqa: E501
    assert rows[0].sqnr == math.inf
    assert rows[1].unmeasured == "it is no longer there"
