"""Real models in torch: equal to the reference, in one piece under torch.compile; graphs of every kind likewise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import graphpress as gp
from graphpress.backends import fx, reference
from graphpress.errors import BadRequest
from graphpress.tools.conformance import inputs, run, whole_models

CNNS = [
    "cifar10/mlperf_tiny_resnet8", "cifar10/resnet20", "cifar10/resnet20_bn", "cifar10/resnet56",
    "detection/fastestdet/FastestDet", "detection/ultraface/version-RFB-320", "detection/ultraface/version-slim-320",
    "imagenet/mobilenet_v1_0.5_160", "imagenet/mobilenet_v1_0.75_192", "mnist/burn_mnist", "mnist/cnn_mnist_pytorch",
    "speech/kws/ds_cnn",
]  # fmt: skip
WHOLE = [*CNNS, "llm/codelm/codelm", "llm/codelm/codelm_outliers", "speech/dtln/model_1", "speech/dtln/model_2"]
QUICK = ("cifar10/mlperf_tiny_resnet8", "speech/kws/ds_cnn")
BRANCHING = ["speech/silero_vad/silero_vad", "speech/silero_vad/silero_vad_16k_op15"]  # on the values of an input


@pytest.mark.parametrize("name", [*WHOLE, *BRANCHING])
def test_a_real_model_equals_the_reference(zoo: Path, name: str) -> None:
    assert whole_models.conforms(zoo / f"{name}.onnx") == (run.PASSED, "")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in WHOLE]
)
def test_a_real_model_is_traced_by_compile_without_a_break(zoo: Path, name: str) -> None:
    """One of each kind always, the others by ``make slow``; ``test_no_graph_breaks`` goes operator by operator."""
    model = gp.load(zoo / f"{name}.onnx")
    runner = fx.execute(model)
    arguments = runner.arguments(_feeds(model))
    torch._dynamo.reset()
    with torch.no_grad():
        given = torch.compile(runner.module, fullgraph=True, backend="eager")(*arguments)
        expected = runner.module(*arguments)
    torch.testing.assert_close(given, expected, rtol=0, atol=0)


def _feeds(model: object) -> dict[str, object]:
    session = reference.execute(model)  # type: ignore[arg-type]
    for feeds in inputs.feeds(session.session.get_inputs()):
        try:
            session(feeds)
        except BadRequest:
            continue
        return feeds
    raise AssertionError("no made-up input runs")


@pytest.mark.slow
def test_every_small_graph_equals_the_reference_or_names_what_is_missing(zoo: Path) -> None:
    folder = zoo / "onnx_zoo"
    runs = {e["file"] for e in json.loads((folder / "manifest.json").read_text()) if e["ort"] == "runs"}
    found = whole_models.run(sorted(folder.rglob("*.onnx")), folder)
    assert {r.name: r.why for r in found.results if r.verdict == run.FAILED} == {}
    missing = [r for r in found.results if r.verdict == run.UNSUPPORTED]
    assert all("unsupported: " in r.why or "has no attribute" in r.why for r in missing)
    assert sum(r.verdict == run.PASSED for r in found.results) >= 0.85 * len(runs)
