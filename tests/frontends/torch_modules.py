"""Small modules of every kind that people trace, with example inputs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim


class Case(NamedTuple):
    """A module, what it is called with, and which dimensions vary."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any] | None = None
    shapes: Any = None


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.softmax(F.gelu(F.linear(x, self.weight)) @ y, -1).clamp(0.1, 0.9)


class ConvNorm(nn.Module):
    """Convolution and norm in every combination: without bias, with bias, without norm, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 4, 1))
        self.up = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, stride=2), nn.BatchNorm2d(6))
        self.head = nn.Linear(6, 5)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.running_mean)
                nn.init.uniform_(part.running_var, 0.5, 2)
                nn.init.uniform_(part.weight, 0.5, 2)
                nn.init.uniform_(part.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.up(self.deep(self.stem(x))).mean((2, 3)))


class Tied(nn.Module):
    """An embedding that is the output layer too, and two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 4), nn.Linear(4, 11, bias=False)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.head.weight, self.second.weight = self.embed.weight, self.first.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(self.embed(ids))))


class Nested(nn.Module):
    """Containers in, containers out, an input that comes out as it is, and an output that is another's input."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.randn(4))
        self.register_buffer("steps", torch.arange(4.0), persistent=False)
        self.list = [torch.ones(4)]

    def forward(self, x: torch.Tensor, *rest: torch.Tensor, extra: dict[str, Any], scale: float = 2.0) -> Any:
        y = (x + self.offset) * scale + self.steps
        return {"logits": y, "state": (extra["pair"][0] * self.list[0], [rest[0] - 1]), "x": x}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, num_layers=2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(10, 3, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        y, (h, _) = self.lstm(x)
        return self.gru(y)[0], h


class Block(nn.Module):
    """A pre-norm transformer block with RMS norm, rotary positions, causal attention and a gated MLP."""

    def __init__(self, dim: int = 16, heads: int = 2, context: int = 32) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(dim, eps=1e-5), nn.RMSNorm(dim, eps=1e-5)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim, bias=False)
        self.gate, self.up, self.down = nn.Linear(dim, 24), nn.Linear(dim, 24), nn.Linear(24, dim)
        width = dim // heads
        angles = torch.outer(torch.arange(context).float(), 1e4 ** (-torch.arange(0, width, 2).float() / width))
        self.register_buffer("cos", torch.cat((angles, angles), -1).cos())
        self.register_buffer("sin", torch.cat((angles, angles), -1).sin())

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        half, time = x.shape[-1] // 2, x.shape[-2]
        return x * self.cos[:time] + torch.cat((-x[..., half:], x[..., :half]), -1) * self.sin[:time]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.qkv(self.norm1(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(13, 16), nn.Linear(16, 13)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.dropout = nn.Dropout(0.5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.dropout(self.embed(ids))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def cases() -> dict[str, Case]:
    """All of them with seeded weights and inputs."""
    torch.manual_seed(0)
    batch, time = Dim("batch"), Dim("time", max=32)
    nest = {"pair": (torch.randn(4), torch.randn(3))}
    return {
        "functional": Case(Functional(), (torch.randn(2, 4), torch.randn(6, 3))),
        "conv-norm": Case(ConvNorm(), (torch.randn(2, 3, 8, 8),), None, {"x": {0: batch}}),
        "batch of one": Case(ConvNorm(), (torch.randn(1, 3, 8, 8),), None, ({0: batch},)),
        "tied": Case(Tied(), (torch.tensor([[1, 2, 10]]),)),
        "nested": Case(Nested(), (torch.randn(2, 4), torch.randn(3)), {"extra": nest}),
        "recurrent": Case(Recurrent(), (torch.randn(2, 3, 4),)),
        "recurrent, dynamic": Case(Recurrent(), (torch.randn(2, 3, 4),), None, ({0: batch},)),
        "transformer": Case(Language(), (torch.randint(0, 13, (2, 7)),), None, {"ids": {0: batch, 1: time}}),
    }
