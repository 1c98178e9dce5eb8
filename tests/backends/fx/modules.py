"""Small modules of every style that people trace, in plain torch."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class Functional(nn.Module):
    """No submodules: parameters and functions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        z = F.gelu(F.linear(x, self.weight, self.bias)) @ y
        return F.softmax(F.layer_norm(z, (3,)), -1).clamp(0.1, 0.9)


class Nested(nn.Module):
    """Modules in modules, under containers and by name."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(
            {
                "a": nn.Sequential(nn.Linear(5, 7), nn.Sequential(nn.ReLU(), nn.Linear(7, 5, bias=False))),
                "b": nn.ModuleList([nn.Linear(5, 5), nn.Sequential(OrderedDict(deep=nn.Linear(5, 5)))]),
            }
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.parts["a"](x)
        for part in self.parts["b"]:  # type: ignore[attr-defined]
            x = torch.tanh(part(x))
        return x


class Tied(nn.Module):
    """An embedding that is the output layer too, and two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 4), nn.Linear(4, 11, bias=False)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.head.weight, self.second.weight = self.embed.weight, self.first.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(self.embed(ids))))


class Buffers(nn.Module):
    """Buffers that are saved, buffers that are not, and a tensor that is neither."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.randn(4))
        self.register_buffer("steps", torch.linspace(0, 1, 4), persistent=False)
        self.register_buffer("table", torch.randint(0, 9, (6,)))
        self.plain = torch.full((4,), 0.5)

    def forward(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return (x + self.offset) * self.plain - self.steps + self.table[index].unsqueeze(-1)


class Containers(nn.Module):
    """Nested arguments, keywords, defaults; outputs in a nest, one twice, an input as it is, constants."""

    def forward(
        self,
        x: torch.Tensor,
        *rest: torch.Tensor,
        extra: dict[str, Any],
        mask: Any = None,
        scale: float = 2.0,
        **more: Any,
    ) -> Any:
        y = x * scale + extra["pair"][0] + more["bias"]
        for part in rest:
            y = y - part
        return {"logits": y, "state": (y + 1, [rest[0] * 2]), "again": y, "x": x, "n": 3, "none": None, "name": "z"}


class Pair(NamedTuple):
    mean: torch.Tensor
    spread: torch.Tensor


class Tuples(nn.Module):
    """A named tuple in a tuple."""

    def forward(self, pair: Pair, unused: torch.Tensor) -> tuple[Pair, torch.Tensor]:
        return Pair(pair[0] * 2, pair.spread.exp()), pair.mean - pair.spread


class Shapes(nn.Module):
    """Sizes that depend on sizes: windows, padding to a multiple, grids, interpolation, repetition."""

    def forward(self, x: torch.Tensor, grid: torch.Tensor) -> tuple[torch.Tensor, ...]:
        b, c, h, w = x.shape
        windows = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b * h // 2 * w // 2, c, 4)
        ramp = torch.arange(w, dtype=x.dtype).view(1, 1, 1, w) / w + torch.linspace(0, 1, 5).sum()
        joined = torch.cat([x[:, :, 1:, : w - 1], x[:, :, :-1, 1:]], 1).flatten(2)
        up = F.interpolate(x, scale_factor=2.0, mode="nearest")[..., :h, -w:]
        return windows.mean(-1), x * ramp, joined, up + F.pad(x, (1, -1, 0, 0)), grid.expand(b, -1).repeat(1, h)


class Recurrent(nn.Module):
    """Both directions, two layers, a state that comes in and goes out."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, num_layers=2, batch_first=True, bidirectional=True)
        self.gru, self.head = nn.GRU(10, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]) -> Any:
        y, state = self.lstm(x, state)
        return self.head(self.gru(y)[0]), state


class ConvNorm(nn.Module):
    """Convolutions with and without a norm behind them, as folds find them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 4, 1))
        self.head = nn.Linear(4, 5)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.running_mean)
                nn.init.uniform_(part.running_var, 0.5, 2)
                nn.init.uniform_(part.weight, 0.5, 2)
                nn.init.uniform_(part.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.deep(self.stem(x)).mean((2, 3)))
