"""Small transformers in torch, in the shapes that rotation must know: encoder, vision, decoder."""

from __future__ import annotations

import functools

import onnx_ir as ir
import torch
from torch import nn
from torch.nn import functional as F

import graphpress as gp


class Encoder(nn.Module):
    """Pre-norm, LayerNorm with biases everywhere; width 48 = 4 x 12."""

    def __init__(self, width: int = 48, heads: int = 4) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(30, width), nn.Parameter(torch.randn(16, width))
        layer = nn.TransformerEncoderLayer(width, heads, 80, batch_first=True, norm_first=True, activation="relu")
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 7)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.layers(self.words(ids) + self.places[: ids.shape[1]])))


class Vision(nn.Module):
    """Patches by a convolution, class token, positions, GELU, LayerScale behind each branch."""

    def __init__(self, width: int = 48, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, width, 4, 4), nn.Parameter(torch.randn(1, 1, width))
        self.places, self.heads = nn.Parameter(torch.randn(1, 17, width)), heads
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(depth))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth + 1))
        self.scales = nn.ParameterList(nn.Parameter(torch.rand(width) + 0.1) for _ in range(2 * depth))
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        for i in range(len(self.qkv)):
            q, k, v = self.qkv[i](self.norms[2 * i](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + self.out[i](y) * self.scales[2 * i]
            x = x + self.down[i](F.gelu(self.up[i](self.norms[2 * i + 1](x)))) * self.scales[2 * i + 1]
        return self.head(self.norms[-1](x)[:, 0])


class RMS(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


class Decoder(nn.Module):
    """RMSNorm, RoPE, grouped queries, softmax attention written out, SwiGLU, head tied to the embedding."""

    def __init__(self, width: int = 32, heads: int = 4, shared: int = 2, hidden: int = 44) -> None:
        super().__init__()
        self.heads, self.shared, self.size = heads, shared, width // heads
        self.words = nn.Embedding(30, width)
        self.n1, self.n2, self.n3 = RMS(width), RMS(width), RMS(width)
        kv = shared * self.size
        self.q, self.k, self.v = (nn.Linear(width, n, bias=False) for n in (width, kv, kv))
        self.o, self.down = nn.Linear(width, width, bias=False), nn.Linear(hidden, width, bias=False)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.head = nn.Linear(width, 30, bias=False)
        self.head.weight = self.words.weight
        angles = torch.outer(torch.arange(16.0), 100.0 ** -torch.linspace(0, 1, self.size // 2)).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def rope(self, x: torch.Tensor) -> torch.Tensor:
        half, t = self.size // 2, x.shape[2]
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * self.cos[:t] + turned * self.sin[:t]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        b, t, d = x.shape
        y = self.n1(x)
        q, k, v = (f(y).view(b, t, -1, self.size).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = self.rope(q), self.rope(k)
        k, v = (z.repeat_interleave(self.heads // self.shared, 1) for z in (k, v))
        scores = q @ k.transpose(-1, -2) / self.size**0.5 + torch.full((t, t), -1e9).triu(1)
        x = x + self.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, d))
        y = self.n2(x)
        return self.head(self.n3(x + self.down(F.silu(self.gate(y)) * self.up(y))))


@functools.cache
def traced(name: str) -> ir.Model:
    """``encoder``, ``vision`` or ``decoder`` with open sizes; never to be changed."""
    torch.manual_seed(0)
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens", max=16)
    ids, open_ = torch.zeros(2, 9, dtype=torch.long), ({0: batch, 1: tokens},)
    module, args, dims = {
        "encoder": lambda: (Encoder(), (ids,), ({0: batch, 1: tokens},)),
        "vision": lambda: (Vision(), (torch.randn(2, 3, 16, 16),), ({0: batch},)),
        "decoder": lambda: (Decoder(), (ids,), open_),
    }[name]()
    module = module.eval()
    for parameter in module.parameters():
        if parameter.dim() == 1:  # gains and biases that matter
            torch.nn.init.normal_(parameter, 0.7, 0.3)
    return gp.trace(module, args, dynamic_shapes=dims)
