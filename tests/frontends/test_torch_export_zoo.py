"""Real torch models with real weights, held to eager and to files that others exported."""

from __future__ import annotations

import importlib.util
import json
import struct
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

import graphpress as gp
from graphpress.backends import reference
from graphpress.graph import edit

SHAPES = ({0: Dim("batch"), 1: Dim("time", max=256)},)


class Basic(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.pad = (outside - inside) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad)) if self.pad else x
        return F.relu(y + short)


class ResNet20(nn.Module):
    """CIFAR-10 ResNet with parameter-free shortcuts (He et al. 2015, section 4.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Basic(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Basic(16, 32, 2), Basic(32, 32, 1), Basic(32, 32, 1))
        self.layer3 = nn.Sequential(Basic(32, 64, 2), Basic(64, 64, 1), Basic(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.avg_pool2d(y, y.shape[3]).flatten(1))


def safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The float32 tensors of a file: https://github.com/huggingface/safetensors#format."""
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    return {
        name: torch.frombuffer(bytearray(data[start + h["data_offsets"][0] : start + h["data_offsets"][1]]),
                               dtype=torch.float32).reshape(h["shape"])
        for name, h in header.items() if name != "__metadata__" and h["dtype"] == "F32"
    }  # fmt: skip


def source(path: Path) -> ModuleType:
    """A Python file of the zoo as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("fold", [True, False])
def test_resnet_is_the_file_that_others_exported(zoo: Path, fold: bool) -> None:
    module = ResNet20()
    module.load_state_dict(safetensors(zoo / "cifar10/resnet20.safetensors"), strict=False)
    model = gp.trace(module, torch.zeros(2, 3, 32, 32), None, ({0: Dim("batch")},), fold_batchnorm=fold)
    x = np.random.default_rng(0).normal(size=(16, 3, 32, 32)).astype(np.float32)
    theirs = reference.execute(gp.load(zoo / "cifar10/resnet20.onnx"))({"input": x})["logits"]
    np.testing.assert_allclose(reference.execute(model)({"x": x})["output"], theirs, rtol=0, atol=1e-4)
    weights = {n for n, p in module.named_parameters() if p.ndim > 1}
    assert weights <= set(model.graph.initializers)
    assert {f"layer2.0.conv{i}/Conv" for i in (1, 2)} <= {n.name for n in edit.nodes(model)}


@pytest.mark.slow
def test_code_model(zoo: Path) -> None:
    module = source(zoo / "llm/codelm/codelm.py").CodeLM()
    module.load_state_dict(safetensors(zoo / "llm/codelm/codelm.safetensors"))
    model = gp.trace(module, torch.zeros(2, 32, dtype=torch.int64), None, SHAPES)
    assert {n for n, _ in module.named_parameters()} <= set(model.graph.initializers)
    ids = np.load(zoo / "llm/codelm/calib.npz")["ids"][:1, :64].astype(np.int64)
    ours = reference.execute(model)({"ids": ids})["output"]
    theirs = next(iter(reference.execute(gp.load(zoo / "llm/codelm/codelm.onnx"))({"ids": ids}).values()))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its loader leaves the file open
def test_stories(zoo: Path) -> None:
    module = source(zoo / "llm/stories260K/load.py").load(str(zoo / "llm/stories260K/stories260K.bin"))
    model = gp.trace(module, torch.zeros(2, 32, dtype=torch.int64), None, SHAPES)
    assert {n for n, _ in module.named_parameters()} <= set(model.graph.initializers)
    ids = torch.randint(0, 512, (3, 50))
    with torch.no_grad():
        eager = module(ids).numpy()
    np.testing.assert_allclose(reference.execute(model)({"ids": ids.numpy()})["output"], eager, rtol=0, atol=1e-4)
