"""Networks that people trace, small: a decoder with a cache, a U-Net, a diffusion transformer's block, experts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


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
        self, input_ids: torch.Tensor, attention_mask: Any = None, position_ids: Any = None,
        past_key_values: Any = None, use_cache: bool = True, output_hidden_states: bool = False,
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
