"""Modules of every style that people trace, in plain torch, with example inputs and others to run on."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim


class Case(NamedTuple):
    """A module, what it is traced with, which dimensions vary, and arguments of other sizes where some do."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = {}  # noqa: RUF012 - never written
    shapes: Any = None
    others: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = ()

    def calls(self) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(self.args, self.kwargs), *self.others]


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
        self, x: torch.Tensor, *rest: torch.Tensor, extra: dict[str, Any], mask: Any = None, scale: float = 2.0, **more: Any
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


class RMSNorm(nn.Module):
    """As transformers write it: in float32, the weight behind the cast."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(dim) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


class Rotary(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 1e4 ** (-torch.arange(0, width, 2).float() / width), persistent=False)

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = position_ids[..., None].float() * self.inv_freq
        angles = torch.cat((angles, angles), -1)[:, None]
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class LlamaAttention(nn.Module):
    """Grouped queries, rotary positions, a cache of keys and values that comes in and goes out."""

    def __init__(self, dim: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.groups, self.width = heads, groups, dim // heads
        self.q_proj, self.o_proj = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, groups * self.width, bias=False)
        self.v_proj = nn.Linear(dim, groups * self.width, bias=False)

    def forward(
        self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor, past: Any = None
    ) -> Any:
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, self.heads, self.width).transpose(1, 2)
        k = self.k_proj(x).view(b, t, self.groups, self.width).transpose(1, 2)
        v = self.v_proj(x).view(b, t, self.groups, self.width).transpose(1, 2)
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        present, times = (k, v), self.heads // self.groups
        k, v = (z[:, :, None].expand(-1, -1, times, -1, -1).flatten(1, 2) for z in present)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1)), present


class LlamaLayer(nn.Module):
    def __init__(self, dim: int, heads: int, groups: int) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(dim), RMSNorm(dim)
        self.self_attn = LlamaAttention(dim, heads, groups)
        self.gate_proj, self.up_proj = nn.Linear(dim, 40, bias=False), nn.Linear(dim, 40, bias=False)
        self.down_proj = nn.Linear(40, dim, bias=False)

    def forward(self, x: torch.Tensor, rotary: Any, mask: torch.Tensor, past: Any = None) -> Any:
        y, present = self.self_attn(self.input_layernorm(x), rotary, mask, past=past)
        x = x + y
        y = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y)), present


class LlamaDecoder(nn.Module):
    """A decoder as Hugging Face has them: keywords, a cache of tuples, position ids, a dict that comes out."""

    def __init__(self, dim: int = 16, layers: int = 2, heads: int = 4, groups: int = 2, vocabulary: int = 19) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, dim)
        self.layers = nn.ModuleList(LlamaLayer(dim, heads, groups) for _ in range(layers))
        self.rotary, self.norm = Rotary(dim // heads), RMSNorm(dim)
        self.lm_head = nn.Linear(dim, vocabulary, bias=False)
        self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self, input_ids: torch.Tensor, attention_mask: Any = None, position_ids: Any = None, past_key_values: Any = None,
        use_cache: bool = True, output_hidden_states: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        x = self.embed_tokens(input_ids)
        past = 0 if past_key_values is None else past_key_values[0][0].shape[2]
        new = x.shape[1]
        if position_ids is None:
            position_ids = torch.arange(past, past + new).unsqueeze(0)
        rows, columns = torch.arange(new).view(-1, 1) + past, torch.arange(past + new)
        mask = (columns <= rows)[None, None]
        if attention_mask is not None:
            mask = mask & attention_mask[:, None, None, :].bool()
        rotary, presents, states = self.rotary(x, position_ids), [], []
        for i, layer in enumerate(self.layers):
            states.append(x)
            x, present = layer(x, rotary, mask, past=None if past_key_values is None else past_key_values[i])
            presents.append(present)
        found: dict[str, Any] = {"logits": self.lm_head(self.norm(x))}
        if use_cache:
            found["past_key_values"] = tuple(presents)
        return {**found, "hidden_states": tuple(states)} if output_hidden_states else found


class ResBlock(nn.Module):
    def __init__(self, inside: int, outside: int, time: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(2, inside), nn.GroupNorm(2, outside)
        self.conv1, self.conv2 = nn.Conv2d(inside, outside, 3, padding=1), nn.Conv2d(outside, outside, 3, padding=1)
        self.time = nn.Linear(time, outside)
        self.skip = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        y = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(y)))


class UNet(nn.Module):
    """Down by strides, attention in the middle, up by interpolation, skips by concatenation, a time step."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, 16), nn.SiLU(), nn.Linear(16, 16))
        self.stem, self.down1 = nn.Conv2d(3, width, 3, padding=1), ResBlock(width, width, 16)
        self.pool, self.down2 = nn.Conv2d(width, width, 3, 2, 1), ResBlock(width, 2 * width, 16)
        self.attention = nn.MultiheadAttention(2 * width, 2, batch_first=True)
        self.up1 = ResBlock(3 * width, width, 16)
        self.up = nn.ConvTranspose2d(width, width, 2, 2)
        self.head = nn.Conv2d(2 * width, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        half = self.width // 2
        angles = t[:, None].to(x.dtype) * torch.exp(-torch.arange(half, dtype=x.dtype) / half)
        time = self.time(torch.cat((angles.sin(), angles.cos()), -1))
        first = self.down1(self.stem(x), time)
        second = self.down2(self.pool(first), time)
        b, c, h, w = second.shape
        tokens = second.flatten(2).transpose(1, 2)
        second = second + self.attention(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).view(b, c, h, w)
        y = F.interpolate(second, size=first.shape[2:], mode="bilinear", align_corners=False)
        y = self.up1(torch.cat((y, first), 1), time)
        y = F.interpolate(self.up(y), size=first.shape[2:], mode="nearest")
        return self.head(torch.cat((y, first), 1))


class DiTBlock(nn.Module):
    """Attention and an MLP, shifted, scaled and gated by a condition (adaLN, arXiv:2212.09748)."""

    def __init__(self, dim: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)[:, None].chunk(6, -1)
        y = self.norm1(x) * (1 + scale1) + shift1
        q, k, v = self.qkv(y).reshape(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d)
        x = x + gate1 * self.proj(y)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class Recurrent(nn.Module):
    """Both directions, two layers, a state that comes in and goes out."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, num_layers=2, batch_first=True, bidirectional=True)
        self.gru, self.head = nn.GRU(10, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]) -> Any:
        y, state = self.lstm(x, state)
        return self.head(self.gru(y)[0]), state


class MoE(nn.Module):
    """Each token through its best experts; which ones, the data say.

    ``routing`` is ``dense`` (all experts on all tokens, weighted by one-hot), ``gather`` (the chosen experts' weights),
    or ``index`` (each expert on its tokens only, added back by index).
    """

    def __init__(self, routing: str, dim: int = 8, hidden: int = 12, experts: int = 4, best: int = 2) -> None:
        super().__init__()
        self.routing, self.best = routing, best
        self.router = nn.Linear(dim, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, dim)) for _ in range(experts)
        )
        self.scale = nn.Parameter(torch.randn(experts, dim, dim))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = x.reshape(-1, x.shape[-1])
        scores = self.router(tokens).softmax(-1)
        weight, chosen = scores.topk(self.best, -1)
        weight = weight / weight.sum(-1, keepdim=True)
        return getattr(self, f"_{self.routing}")(tokens, weight, chosen).view_as(x), scores

    def _dense(self, tokens: torch.Tensor, weight: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        share = (F.one_hot(chosen, len(self.experts)).to(weight.dtype) * weight[..., None]).sum(1)
        return torch.stack([expert(tokens) for expert in self.experts], -1) @ share[..., None] @ share.new_ones(1, 1)

    def _gather(self, tokens: torch.Tensor, weight: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        return torch.einsum("nk,nkij,nj->ni", weight, self.scale[chosen], tokens)

    def _index(self, tokens: torch.Tensor, weight: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        result = torch.zeros_like(tokens)
        for i, expert in enumerate(self.experts):
            rows, slots = torch.where(chosen == i)
            result = result.index_add(0, rows, expert(tokens[rows]) * weight[rows, slots, None])
        return result


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


def _decoder(new: int, past: int, batch: int = 2) -> dict[str, Any]:
    """Keywords of one step of LlamaDecoder with a cache."""
    cache = tuple((torch.randn(batch, 2, past, 4), torch.randn(batch, 2, past, 4)) for _ in range(2))
    mask = torch.ones(batch, past + new, dtype=torch.int64)
    mask[0, 0] = 0
    return {
        "input_ids": torch.randint(0, 19, (batch, new)),
        "attention_mask": mask,
        "position_ids": torch.arange(past, past + new).expand(batch, -1),
        "past_key_values": cache,
    }


def _cache_shapes(batch: Any, past: Any) -> Any:
    return tuple(({0: batch, 2: past}, {0: batch, 2: past}) for _ in range(2))


def _styles() -> dict[str, Case]:
    x = torch.randn
    nest = {"extra": {"pair": (x(4), x(3))}, "bias": x(4)}
    return {
        "functional": Case(Functional(), (x(2, 4), x(6, 3))),
        "nested": Case(Nested(), (x(2, 3, 5),)),
        "tied": Case(Tied(), (torch.tensor([[1, 2, 10]]),)),
        "buffers": Case(Buffers(), (x(3, 4), torch.tensor([0, 5, 2]))),
        "containers": Case(Containers(), (x(2, 4), x(4), x(4)), nest),
        "tuples": Case(Tuples(), (Pair(x(3), x(3)), x(2))),
        "shapes": Case(Shapes(), (x(2, 3, 4, 6), x(1, 3))),
        "prefill": Case(LlamaDecoder(), (torch.randint(0, 19, (2, 5)),)),
        "decode": Case(LlamaDecoder(), (), _decoder(1, 6)),
        "unet": Case(UNet(), (x(2, 3, 8, 8), torch.tensor([3, 50]))),
        "dit": Case(DiTBlock(), (x(2, 6, 12), x(2, 12))),
        "lstm": Case(Recurrent(), (x(2, 3, 4), (x(4, 2, 5), x(4, 2, 5)))),
        "moe, dense": Case(MoE("dense"), (x(2, 5, 8),)),
        "moe, gather": Case(MoE("gather"), (x(2, 5, 8),)),
        "moe, index": Case(MoE("index"), (x(2, 5, 8),)),
        "conv-norm": Case(ConvNorm(), (x(2, 3, 8, 8),)),
    }


def _dynamic() -> dict[str, Case]:
    x = torch.randn
    batch, time, past = Dim("batch"), Dim("time", max=64), Dim("past", max=64)
    half_h, half_w = Dim("half_h", min=2), Dim("half_w", min=2)
    sizes = [(1, 3, 2, 4), (3, 3, 8, 10)]
    decoder = {
        "input_ids": {0: batch},
        "attention_mask": {0: batch, 1: past + 1},
        "position_ids": {0: batch},
        "past_key_values": _cache_shapes(batch, past),
    }
    return {
        "nested, dynamic": Case(
            Nested(), (x(2, 3, 5),), {}, ({0: batch, 1: time},), (((x(1, 1, 5),), {}), ((x(4, 9, 5),), {}))
        ),
        "shapes, dynamic": Case(
            Shapes(), (x(2, 3, 4, 6), x(1, 3)), {}, ({0: batch, 2: 2 * half_h, 3: 2 * half_w}, None),
            tuple(((x(*s), x(1, 3)), {}) for s in sizes),
        ),
        "prefill, dynamic": Case(
            LlamaDecoder(), (torch.randint(0, 19, (2, 5)),), {}, ({0: batch, 1: time},),
            (((torch.randint(0, 19, (1, 2)),), {}), ((torch.randint(0, 19, (3, 11)),), {})),
        ),
        "decode, dynamic": Case(LlamaDecoder(), (), _decoder(1, 6), decoder, (((), _decoder(1, 3, 4)),)),
        "unet, dynamic": Case(
            UNet(), (x(2, 3, 8, 8), torch.tensor([3, 50])), {}, ({0: batch, 2: 2 * half_h, 3: 2 * half_w}, {0: batch}),
            (((x(3, 3, 12, 6), torch.tensor([0, 9, 999])), {}),),
        ),
        "dit, dynamic": Case(
            DiTBlock(), (x(2, 6, 12), x(2, 12)), {}, ({0: batch, 1: time}, {0: batch}), (((x(3, 10, 12), x(3, 12)), {}),)
        ),
        "lstm, dynamic": Case(
            Recurrent(), (x(2, 3, 4), (x(4, 2, 5), x(4, 2, 5))), {}, ({0: batch}, ({1: batch}, {1: batch})),
            (((x(3, 3, 4), (x(4, 3, 5), x(4, 3, 5))), {}),),
        ),
        "moe, gather, dynamic": Case(
            MoE("gather"), (x(2, 5, 8),), {}, ({0: batch, 1: time},), (((x(1, 7, 8),), {}),)
        ),
        "conv-norm, dynamic": Case(ConvNorm(), (x(2, 3, 8, 8),), {}, ({0: batch},), (((x(5, 3, 8, 8),), {}),)),
    }  # fmt: skip


def cases() -> dict[str, Case]:
    """All of them in evaluation mode, with seeded weights and inputs."""
    torch.manual_seed(0)
    found = _styles() | _dynamic()
    for case in found.values():
        case.module.eval()
    return found
