"""Real models: how close they stay, and that nothing between integer operators is left in float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphpress.backends import reference
from graphpress.graph import edit
from graphpress.observe.data import CalibrationData
from graphpress.passes.quantize.quantize import Quantize
from graphpress.recipe import make_pass
from graphpress.types import Role
from tests import kit
from tests.passes.quantizing import quantize

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def load(path: Path) -> ir.Model:
    model = ir.from_proto(onnx.load(path))
    for i, node in enumerate(edit.nodes(model)):
        node.name = f"{node.op_type}_{i}"
    return model


def sqnr(before: ir.Model, after: ir.Model, feeds: dict[str, np.ndarray]) -> float:
    """Signal to noise over the batches of ``feeds``, of the worst output, in dB."""
    runners = [reference.execute(m) for m in (before, after)]
    a, b = ([r(batch) for batch in CalibrationData.from_arrays(feeds).bind(before).batches(16)] for r in runners)
    return min(
        10
        * np.log10(
            sum(np.sum(x[k] ** 2) for x in a) / sum(np.sum((x[k] - y[k]) ** 2) for x, y in zip(a, b, strict=True))
        )
        for k in a[0]
    )


@pytest.fixture(scope="module")
def images(zoo: Path) -> np.ndarray:
    x = np.load(zoo / "cifar10/calib.npz")["x"][:32] / 255.0
    return ((x - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32)


@pytest.mark.parametrize(
    ("options", "least"),
    [
        (Quantize(), 27),
        (Quantize(observer="mse", weight_observer="mse"), 27),
        (Quantize(mode="dynamic", fallback=("weight",)), 33),
        (Quantize(mode="weight", weight="int4", weight_granularity="per_group", group_size=16), 9),
    ],
)
def test_resnet20(zoo: Path, images: np.ndarray, options: Quantize, least: float) -> None:
    model = load(zoo / "cifar10/resnet20.onnx")
    feeds = {model.graph.inputs[0].name or "": images}
    after, report = quantize(model, options, feeds)
    assert sqnr(model, after, feeds) > least
    assert {s.node for s in report.plan or ()} >= {n.name for n in edit.nodes(model) if n.op_type in ("Conv", "Gemm")}
    if options.mode == "static":
        outputs = {s.node for s in report.plan or () if s.role is Role.OUTPUT}
        assert outputs >= {n.name for n in edit.nodes(model) if n.op_type in ("Add", "Slice", "Pad", "AveragePool")}


def test_codelm(zoo: Path) -> None:
    """Transformers are quantized at their matrix products alone; RoPE, norms and the residual stream stay float."""
    model = load(zoo / "llm/codelm/codelm.onnx")
    tokens = next(iter(np.load(zoo / "llm/codelm/calib.npz").values()))
    feeds = {model.graph.inputs[0].name or "": np.resize(tokens, (4, 128)).astype(np.int64)}
    for options, least in ((Quantize(), 29), (Quantize(mode="dynamic", activation_granularity="per_token"), 38)):
        after, report = quantize(model, options, feeds)
        touched = {edit.find(model, s.node).op_type for s in report.plan or ()}
        assert touched == {"MatMul", "Gather"}
        assert sqnr(model, after, feeds) > least


def test_silero(zoo: Path) -> None:
    """Its convolutions and LSTMs stand in the branches of an If, their weights behind Slice and Concat."""
    model, _ = kit.apply(load(zoo / "speech/silero_vad/silero_vad_16k_op15.onnx"), make_pass("fold-constants", {}))
    rng = np.random.default_rng(0)
    feeds = {
        "input": rng.normal(size=(4, 1, 576)).astype(np.float32) / 10,
        "state": np.zeros((4, 2, 1, 128), np.float32),
        "sr": np.full(4, 16000),
    }
    feeds = {v.name or "": feeds[v.name or ""] for v in model.graph.inputs}
    after, report = quantize(model, Quantize(mode="dynamic", fallback=("weight",)), feeds)
    assert {edit.find(model, s.node).op_type for s in report.plan or ()} == {"Conv", "LSTM"}
    assert sqnr(model, after, feeds) > 15
