"""All clean passes in a row on real models and on graphs of every kind: same outputs, same signature."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.errors import InvalidModel
from graphpress.frontends import onnx_file
from graphpress.graph import edit
from graphpress.passes.clean.fold_batchnorm import FoldBatchnorm
from graphpress.passes.clean.fold_constants import FoldConstants
from graphpress.passes.clean.fuse_gelu import FuseGelu
from graphpress.passes.clean.fuse_norm import FuseNorm
from graphpress.passes.clean.fuse_pad import FusePad
from graphpress.passes.clean.infer_shapes import InferShapes
from graphpress.passes.clean.inline_branches import InlineBranches
from graphpress.passes.clean.lift_constants import LiftConstants
from graphpress.passes.clean.merge_common import MergeCommon
from graphpress.passes.clean.merge_reshapes import MergeReshapes
from graphpress.passes.clean.remove_dead import RemoveDead
from graphpress.passes.clean.remove_identity import RemoveIdentity
from graphpress.passes.clean.remove_initializer_inputs import RemoveInitializerInputs
from graphpress.pipeline import Pipeline, deviation
from tests import kit

CLEAN = Pipeline(
    [
        RemoveInitializerInputs(),
        LiftConstants(),
        RemoveDead(),
        InferShapes(),
        FoldConstants(),
        InlineBranches(),
        MergeReshapes(),
        RemoveIdentity(),
        FusePad(),
        FoldBatchnorm(),
        FuseNorm(),
        FuseGelu(),
        MergeCommon(),
        RemoveDead(),
        InferShapes(),
    ]
)
REAL = {
    "cifar10/resnet20_bn.onnx": 56,  # as many nodes as the folded export of the same model has
    "cifar10/resnet56_bn.onnx": 146,
    "detection/fastestdet/FastestDet.onnx": 211,
    "detection/ultraface/version-RFB-320.onnx": 125,
    "detection/ultraface/version-slim-320.onnx": 110,
    "imagenet/mobilenet_v1_0.5_160.onnx": 59,
    "llm/codelm/codelm.onnx": 228,
    "mnist/burn_mnist.onnx": 12,
    "speech/dtln/model_1.onnx": 24,
    "speech/dtln/model_2.onnx": 74,
    "speech/kws/ds_cnn.onnx": 22,
}


def signature(model: ir.Model) -> list[tuple[str | None, str, str]]:
    values = [v for v in model.graph.inputs if not v.is_initializer()] + list(model.graph.outputs)
    return [(v.name, str(v.type), str(v.shape)) for v in values]


@pytest.mark.parametrize("name", REAL)
def test_real_models(zoo: Path, name: str) -> None:
    model = onnx_file.load(zoo / name)
    after, _ = CLEAN.run(model)
    assert len(after.graph) <= REAL[name], Counter(kit.ops(after))
    assert signature(after) == signature(model)
    feeds = kit.random_feeds(model)
    assert deviation(kit.run(model, feeds), kit.run(after, feeds)) < 1e-5


def test_the_unfolded_resnet_is_the_folded_one(zoo: Path) -> None:
    after, _ = CLEAN.run(onnx_file.load(zoo / "cifar10/resnet56_bn.onnx"))
    assert set(kit.ops(after)) == {"Conv", "Relu", "Add", "Slice", "Pad", "AveragePool", "Reshape", "Gemm"}
    assert all(o.shape is not None and o.dtype is not None for n in edit.nodes(after) for o in n.outputs)
    weights = {n.inputs[1].name for n in edit.nodes(after) if n.op_type == "Conv" and n.inputs[1]}
    assert "layer1.0.conv1.weight" in weights
    assert len(weights) == 55
    exported = onnx_file.load(zoo / "cifar10/resnet56.onnx")
    x = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    (wanted,), (got,) = (kit.run(m, {m.graph.inputs[0].name or "": x}).values() for m in (exported, after))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["silero_vad.onnx", "silero_vad_16k_op15.onnx"])
def test_silero_with_its_nested_branches(zoo: Path, name: str) -> None:
    model = onnx_file.load(zoo / "speech/silero_vad" / name)
    after, _ = CLEAN.run(model)
    assert "Constant" not in kit.ops(after)
    assert len(kit.ops(after)) < 0.6 * len(kit.ops(model))
    rng = np.random.default_rng(0)
    feeds = {
        "input": rng.normal(size=(1, 576)).astype(np.float32),
        "state": rng.normal(size=(2, 1, 128)).astype(np.float32),
        "sr": np.array(16000),
    }
    feeds = {v.name: feeds[v.name] for v in model.graph.inputs if v.name in feeds}
    before, result = kit.run(model, feeds), kit.run(after, feeds)
    for key, wanted in before.items():  # the probability is near 0: an absolute bound beside the relative one
        np.testing.assert_allclose(result[key], wanted, rtol=1e-5, atol=1e-6)


def test_cleaning_is_quick(zoo: Path) -> None:
    model = onnx_file.load(zoo / "cifar10/resnet56_bn.onnx")
    CLEAN.run(model)  # loads the reference implementations
    best = min(_seconds(model) for _ in range(3))
    assert best < 0.5  # of the passes alone, 0.05 s seen on an idle machine


def _seconds(model: ir.Model) -> float:
    _, reports = CLEAN.run(model)
    return sum(r.seconds for r in reports)


@pytest.mark.parametrize(("every", "least"), [(9, 40), pytest.param(3, 120, marks=pytest.mark.slow)])
def test_graphs_of_every_kind(zoo: Path, every: int, least: int) -> None:
    """Some of the small graphs of the collection that ONNX Runtime runs."""
    manifest = json.loads((zoo / "onnx_zoo/manifest.json").read_text())
    names = [e["file"] for e in manifest if e["ort"] == "runs" and e["size"] < 100_000]
    checked = 0
    for name in names[::every]:
        try:
            model = onnx_file.load(zoo / "onnx_zoo" / name)
            feeds = kit.random_feeds(model)
            before = _arrays(kit.run(model, feeds))
            repeatable = deviation(before, _arrays(kit.run(model, feeds))) == 0
        except InvalidModel:
            continue
        except Exception:  # noqa: BLE001  random inputs do not suit it; ONNX Runtime's errors have no common base
            continue
        after, _ = CLEAN.run(model)
        result = _arrays(kit.run(after, feeds))
        checked += 1
        assert [v.name for v in after.graph.outputs] == [v.name for v in model.graph.outputs]
        if repeatable:
            assert deviation(before, result) < 1e-5, name
    assert checked > least


def _arrays(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors among the outputs; sequences and strings are left out."""
    return {k: v for k, v in outputs.items() if isinstance(v, np.ndarray) and v.dtype != object}
