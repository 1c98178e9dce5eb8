"""The recipe w4a4-qvgen as a user runs it: trained, no branch left, integer products alone; what it lacks is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress.errors import BadRequest
from graphpress.passes.quantize.quantize import Quantize
from graphpress.recipe import Recipe
from tests import kit
from tests.passes import quantizing
from tests.passes.recovering import X, chain

pytest.importorskip("torch")
SHORT = Recipe.load("w4a4-qvgen").set(["recover.steps=24", "recover.method={qvgen: {rank: 4, share: 0.5}}"])


def test_compiled_and_saved_there_are_integer_products_and_no_branches(tmp_path: Path) -> None:
    model, report = gp.compile(chain(), SHORT, {"x": X}, gate=False)
    trained = next(p for p in report.passes if p.name == "recover")
    assert trained.metrics["loss after"] < trained.metrics["loss before"]  # type: ignore[operator]
    assert trained.metrics["steps"] == 24.0 and not trained.skips
    coverage = report.coverage()
    assert coverage.sites == coverage.weights == coverage.macs == 1.0
    assert {row.verdict for row in report.sites} == {"integer"}
    assert all("int4 per_token" in row.scheme and "weight[1] int4" in row.scheme for row in report.sites)
    assert kit.ops(model).count("MatMulIntegerToFloat") == 3 and "MatMul" not in kit.ops(model)
    weights = [v for v in model.graph.initializers.values() if v.shape is not None and len(v.shape) == 2]
    assert [v.dtype for v in weights] == [ir.DataType.INT4] * 3
    gp.save(model, tmp_path / "m.onnx")
    again = gp.load(tmp_path / "m.onnx")
    kit.assert_same_outputs(model, again, rtol=0, atol=0)


def test_it_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadRequest, match=r"rank 4 fade in 3 phases of equal steps\. Set steps, to 6 at least"):
        SHORT.set(["recover.steps=5"])
    ran: list[str] = []
    monkeypatch.setattr(Quantize, "run", lambda self, model, ctx, report: ran.append(self.name))
    with pytest.raises(BadRequest, match=r"recover: training needs calibration data\. Give data"):
        gp.compile(chain(), SHORT)
    assert not ran  # told before anything is quantized
    monkeypatch.undo()
    text = "g (float[N, 4, 6, 6] x, float[4, 4, 3, 3] w) => (float[N, 4, 4, 4] y) { y = Conv(x, w) }"
    conv = quantizing.model(text, {"w": quantizing.normal(4, 4, 3, 3)})
    images = {"x": np.random.default_rng(0).normal(size=(16, 4, 6, 6)).astype(np.float32)}
    _, report = gp.compile(conv, SHORT, images)  # nothing is quantized, so nothing has to be won back
    assert [w.where for w in report.warnings] == ["recipe 'w4a4-qvgen'"]
