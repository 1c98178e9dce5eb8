"""The plan depends on the shapes that the target will run: on a machine whose times are computed, not measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.context import Context
from graphpress.graph import edit
from graphpress.observe.data import CalibrationData
from graphpress.passes.allocate import allocate, meter, trial
from graphpress.passes.allocate.allocate import Allocate
from graphpress.passes.clean.infer_shapes import InferShapes
from graphpress.report.report import stored_bytes
from graphpress.runner import Arrays
from graphpress.target import Target
from tests import kit
from tests.passes import allocating, quantizing

TOKENS = """
g (float[N, T, 64] x, float[64, 128] a, float[128, 64] b) => (float[N, T, 64] y) {
    [up] h = MatMul(x, a)
    [act] r = Relu(h)
    [down] y = MatMul(r, b)
}"""
FORMATS = ("w8a8-dynamic", "w4a16-g32")


class Machine:
    """Runs a model; takes as long as its bytes or its products take, whichever is longer: products of floats eight
    times as long as those of integers."""

    def __init__(self, model: ir.Model) -> None:
        self.model, self.runner = model, allocating.context(None).need("run", "test")(model)
        self.input_names, self.output_names = self.runner.input_names, self.runner.output_names

    def __call__(self, feeds: Arrays) -> Mapping[str, np.ndarray]:
        return self.runner(feeds)

    def takes(self, feeds: Arrays) -> float:
        integers = any(n.op_type in ("DynamicQuantizeLinear", "DynamicQuantizeToken") for n in edit.nodes(self.model))
        tokens = max((int(np.prod(a.shape[:-1])) for a in feeds.values()), default=0)
        weights = sum(64 * 128 for n in self.model.graph if n.op_type == "MatMul")
        return max(stored_bytes(self.model) / 1000, tokens * weights * (1 if integers else 8) / 1e5)


def alternate(runners: Mapping[str, tuple[Machine, Arrays]], seconds: float = 0.0) -> dict[str, float]:
    return {name: run.takes(feeds) for name, (run, feeds) in runners.items()}


def compare(a: Machine, b: Machine, feeds: Arrays, *_: Any, **__: Any) -> dict[str, float]:
    return {"ratio": b.takes(feeds) / a.takes(feeds)}


def plan(phase: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The formats of both layers where latency is to be least."""
    for module in (meter, allocate):
        monkeypatch.setattr(module, "alternate", alternate)
    monkeypatch.setattr(trial, "compare_latency", compare)
    made = quantizing.model(TOKENS, {"a": quantizing.normal(64, 128), "b": quantizing.normal(128, 64, seed=1)})
    data = CalibrationData.from_arrays({"x": quantizing.normal(4, 16, 64, seed=2)})
    ctx: Context = replace(allocating.context(data, torch=False), deploy=Machine, target=Target.load(f"ort-cpu{phase}"))
    step = Allocate(formats=FORMATS, objective="latency", max_latency="1x", samples=2, measure=1)
    _, (*_, report) = kit.apply(made, InferShapes(), step, ctx=ctx)
    assert report.plan is not None
    return {str(v).split()[0] for s, v in report.plan.items() if s.role.value == "weight"}


def test_one_token_at_a_time_wants_few_bytes_and_many_want_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan(":decode", monkeypatch) == {"int4"}
    assert plan(":prefill", monkeypatch) == {"int8"}
