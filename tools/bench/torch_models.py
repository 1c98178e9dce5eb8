"""The torch modules that the fx backend is timed against: with real weights or the published shapes."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut that pads channels (He et al., 2016, option A)."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride, self.padding = stride, (planes - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """ResNet of 6n + 2 layers for 32 px images, under the names of the checkpoints in the zoo."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        for i in (1, 2, 3):
            blocks = [
                BasicBlock(widths[i - 1] if j == 0 else widths[i], widths[i], 2 if i > 1 and j == 0 else 1)
                for j in range(n)
            ]
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return cast(Tensor, self.linear(F.avg_pool2d(x, x.shape[3]).flatten(1)))


class MobileNetV1(nn.Module):
    """Depthwise separable convolutions (Howard et al., 2017)."""

    def __init__(self, width: float = 0.75, classes: int = 1000) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> list[nn.Module]:
            conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
            return [conv, nn.BatchNorm2d(outputs), nn.ReLU6()]

        widths = [int(c * width) for c in (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)]
        strides = [1, 2, 1, 2, 1, 2, *[1] * 5, 2, 1]
        layers = layer(3, widths[0], 3, 2, 1)
        for (a, b), stride in zip(itertools.pairwise(widths), strides, strict=True):
            layers += layer(a, a, 3, stride, a) + layer(a, b, 1, 1, 1)
        self.features, self.head = nn.Sequential(*layers), nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.features(x).mean((2, 3))))


class EncoderLayer(nn.Module):
    """Pre-norm attention and MLP (Dosovitskiy et al., 2021)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2, self.heads = nn.Linear(width, hidden), nn.Linear(hidden, width), heads

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, c))
        return cast(Tensor, x + self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class ViT(nn.Module):
    """A vision transformer; the defaults are ViT-Ti/16 at 224 px."""

    def __init__(self, width: int = 192, depth: int = 12, heads: int = 3, patch: int = 16, size: int = 224) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width) * 0.02)
        self.layers = nn.Sequential(*(EncoderLayer(width, heads, 4 * width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1) + self.position
        return cast(Tensor, self.head(self.norm(self.layers(x))[:, 0]))


def _load(module: nn.Module, path: Path) -> nn.Module:
    from safetensors.torch import load_file

    module.load_state_dict(load_file(path), strict=False)
    return module.eval()


def mobilenet() -> nn.Module:
    """Without training, but with the statistics of its own activations, so that these do not fade."""
    module = MobileNetV1()
    with torch.no_grad():
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = None  # the mean of all batches
        module.train()(torch.randn(4, 3, 96, 96))
    return module.eval()


def code_model(zoo: Path) -> nn.Module:
    """The byte-level language model of the zoo."""
    folder = zoo / "llm" / "codelm"
    spec = importlib.util.spec_from_file_location("codelm", folder / "codelm.py")
    assert spec is not None and spec.loader is not None
    source: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)
    return _load(source.CodeLM(), folder / "codelm.safetensors")


Case = tuple[Callable[[Path], nn.Module], Callable[[int], Tensor], tuple[int, ...]]


def _images(size: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.randn(batch, 3, size, size)


# name -> (how to make it, inputs of a batch, batch sizes)
MODELS: dict[str, Case] = {
    "ResNet-20": (lambda zoo: _load(CifarResNet(3), zoo / "cifar10" / "resnet20.safetensors"), _images(32), (1, 32)),
    "ResNet-56": (lambda zoo: _load(CifarResNet(9), zoo / "cifar10" / "resnet56.safetensors"), _images(32), (1, 32)),
    "MobileNetV1-0.75": (lambda zoo: mobilenet(), _images(192), (1, 8)),
    "ViT-Ti/16": (lambda zoo: ViT().eval(), _images(224), (1, 4)),
    "code model": (code_model, lambda batch: torch.randint(0, 256, (batch, 256)), (1, 4)),
}
