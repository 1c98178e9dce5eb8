"""scaled_dot_product_attention and the modules on top of it, in every form: the graph computes what torch does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphpress as gp

B, H, S, E = 2, 4, 6, 8
LEAST = 100.0  # dB: float32 throughout

SHAPES = [(S, S), (1, S), (H, S, S), (1, 1, S), (B, 1, 1, S), (B, 1, S, S), (1, 1, 1, S), (1, H, 1, S), (B, 1, S, 1)]
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Form:
    """Queries, keys and values, the shape of their mask and its kind; ``blind``: a query or a sample sees nothing."""

    qkv: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Tensors]
    mask: tuple[int, ...] | None = None
    kind: str = "seen"
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, given: dict[str, torch.Tensor]) -> torch.Tensor:
        mask = None
        if self.mask is not None:
            mask = given[self.kind][(slice(None),) * (5 - max(len(self.mask), 4))]
            mask = mask[None] if len(self.mask) == 5 else mask[(0,) * (4 - len(self.mask))]
            mask = mask[tuple(slice(0, n) for n in self.mask)]
        qkv = self.qkv(given["q"], given["k"], given["v"])
        return F.scaled_dot_product_attention(*qkv, attn_mask=mask, **self.options)


def _every(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Tensors:
    return q, k, v


def _forms() -> dict[str, Form]:
    found: dict[str, Form] = {}
    keys, grouped = (B, 1, 1, S), {"enable_gqa": True}
    for kind in ("seen", "noise"):
        found |= {f"{kind} {shape}": Form(_every, shape, kind) for shape in SHAPES}
        found |= {
            f"blind {kind} {shape}": Form(_every, shape, f"blind {kind}") for shape in ((S, S), (B, 1, S, S), keys)
        }
        found |= {
            f"{kind} grouped": Form(lambda q, k, v: (q, k[:, :2], v[:, :2]), keys, kind, grouped),
            f"{kind} one key head": Form(lambda q, k, v: (q, k[:, :1], v[:, :1]), keys, kind),
            f"{kind} cross": Form(lambda q, k, v: (q[:, :, :3], k, v), keys, kind, {"scale": 0.3}),
            f"{kind} rank 3": Form(lambda q, k, v: (q[0], k[0], v[0]), (H, 1, S), kind),
            f"{kind} rank 5": Form(lambda q, k, v: (q[None], k[None], v[None]), (1, *keys), kind),
        }
    causal = {"is_causal": True}
    return found | {
        "plain": Form(_every), "window": Form(_every, (1, 1, S, S), "window"),
        "scale": Form(_every, options={"scale": 1.0}),
        "turned": Form(_every, options={"scale": -0.3}), "few values": Form(lambda q, k, v: (q, k, v[..., :4])),
        "causal": Form(_every, options=causal), "grouped, all": Form(_every, options=grouped),
        "causal, few queries": Form(lambda q, k, v: (q[:, :, :3], k, v), options=causal),
        "causal, few keys": Form(lambda q, k, v: (q, k[:, :, :3], v[:, :, :3]), options=causal),
        "grouped": Form(lambda q, k, v: (q, k[:, :2], v[:, :2]), options=grouped),
        "one query head": Form(lambda q, k, v: (q[:, :1], k, v)),
        "one key head": Form(lambda q, k, v: (q, k[:, :1], v[:, :1]), options=causal),
        "one key head, all values": Form(lambda q, k, v: (q, k[:, :1], v)),
        "one batch of keys": Form(lambda q, k, v: (q, k[:1], v[:1])),
        "rank 2": Form(lambda q, k, v: (q[0, 0], k[0, 0], v[0, 0])),
        "rank 3": Form(lambda q, k, v: (q[0], k[0], v[0]), options=causal),
        "rank 5, grouped": Form(lambda q, k, v: (q[None], k[None, :, :2], v[None, :, :2]), options=causal | grouped),
    }  # fmt: skip


def _given() -> dict[str, torch.Tensor]:
    rows = torch.Generator().manual_seed(0)
    found = {name: torch.randn(B, H, S, E, generator=rows) for name in "qkv"}
    seen, noise = torch.rand(B, H, S, S, generator=rows) > 0.4, torch.randn(B, H, S, S, generator=rows)
    seen[..., 0] = True
    blind = seen.clone()
    blind[-1], blind[..., -1, :] = False, False
    window = ((torch.arange(S)[:, None] - torch.arange(S)).abs() < 2).expand(1, 1, S, S)
    return found | {
        "seen": seen, "noise": noise.masked_fill(~seen, -torch.inf), "window": window,
        "blind seen": blind, "blind noise": noise.masked_fill(~blind, -torch.inf),
    }  # fmt: skip


class All(nn.Module):
    """Every form at once: one trace."""

    def __init__(self, forms: dict[str, Form]) -> None:
        super().__init__()
        self.forms = forms

    def forward(self, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: form(given) for name, form in self.forms.items()}


def _sqnr(want: torch.Tensor, got: Any) -> float:
    a, b = want.detach().numpy().astype(np.float64), np.asarray(got, np.float64)
    assert a.shape == b.shape
    noise = ((a - b) ** 2).sum()
    return float(10 * np.log10((a**2).sum() / noise)) if noise else np.inf


def _differ(want: dict[str, torch.Tensor], got: dict[str, Any]) -> dict[str, float]:
    assert list(want) == list(got)
    return {name: found for name in want if not (found := _sqnr(want[name], got[name])) >= LEAST}


@pytest.mark.parametrize(
    ("opset", "every"),
    [(23, 8), *(pytest.param(opset, 1, marks=pytest.mark.slow) for opset in (18, 20, 23))],
)
def test_every_form(opset: int, every: int) -> None:
    """All of them where there is time, one of ``every`` otherwise."""
    forms = _forms()
    module, given = All({name: forms[name] for name in list(forms)[::every]}).eval(), _given()
    model, want = gp.trace(module, (given,), opset=opset), module(given)
    feeds = {v.name: t.numpy() for v, t in zip(model.graph.inputs, given.values(), strict=True)}
    assert not _differ(want, dict(zip(want, gp.lower(model)(feeds).values(), strict=True)))
    assert not _differ(want, gp.lower(model, "torch-cpu")(given))


@pytest.mark.parametrize("opset", [pytest.param(20, marks=pytest.mark.slow), 23])
def test_axes_that_vary(opset: int) -> None:
    """Traced with 6 tokens of 2 sequences, run with 9 of 3."""

    class Attend(nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
            shared = x[:, :1]
            keys = mask[:, None, None, :]
            one = F.scaled_dot_product_attention(x, shared, shared, attn_mask=keys)
            return one, F.scaled_dot_product_attention(one[:, 0], one[:, 1], one[:, 2], attn_mask=mask[:, None, :])

    def given(batch: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.Generator().manual_seed(tokens)
        seen = torch.rand(batch, tokens, generator=rows) > 0.4
        seen[-1] = False
        return torch.randn(batch, H, tokens, E, generator=rows), seen

    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    shapes = {"x": {0: batch, 2: tokens}, "mask": {0: batch, 1: tokens}}
    model = gp.trace(Attend(), given(2, 6), dynamic_shapes=shapes, opset=opset)
    x, mask = given(3, 9)
    want = dict(enumerate(Attend()(x, mask)))
    got = gp.lower(model)({"x": x.numpy(), "mask": mask.numpy()})
    assert not _differ(want, dict(enumerate(got.values())))
    assert not _differ(want, dict(enumerate(gp.lower(model, "torch-cpu")(x, mask))))


class Stack(nn.Module):
    """torch's own modules under masks of keys, all in one."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.extended = nn.MultiheadAttention(16, 4, batch_first=True, add_bias_kv=True, add_zero_attn=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.normed = nn.TransformerEncoder(layer, 1, norm=nn.LayerNorm(16))
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 32, batch_first=True), 1)
        nn.init.normal_(self.normed.norm.bias)

    def forward(self, x: torch.Tensor, padded: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        shown, weights = self.attention(x, x, x, key_padding_mask=padded)
        causal = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return {
            "attention": self.attention(x, x, x, key_padding_mask=padded, attn_mask=mask, need_weights=False)[0],
            "single": self.attention(x[0], x[0], x[0], key_padding_mask=padded[0], need_weights=False)[0],
            "shown": shown, "weights": weights, "encoder": self.encoder(x, src_key_padding_mask=padded),
            "extended": self.extended(x, x, x, key_padding_mask=padded, need_weights=False)[0],
            "normed": self.normed(x, src_key_padding_mask=padded), "masked": self.encoder(x, mask=mask),
            "decoder": self.decoder(x, x, causal, tgt_is_causal=True, memory_key_padding_mask=padded),
        }  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of nested tensors
def test_modules_of_torch() -> None:
    """An encoder puts zeros in place of padding where it is last, before its last norm."""
    torch.manual_seed(0)
    module, x, padded = Stack().eval(), torch.randn(2, 5, 16), torch.zeros(2, 5, dtype=torch.bool)
    padded[1, 3:] = True
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
    model = gp.trace(module, (x, torch.zeros_like(padded), mask))
    assert torch.backends.mha.get_fastpath_enabled()
    on_ort, on_torch = gp.lower(model), gp.lower(model, "torch-cpu")
    for seen in ((x, padded, mask), (x, padded.flip(1), mask.flip(0, 1))):
        with torch.no_grad():
            want = module(*seen)
            assert not _differ(want, on_torch(*seen))
        feeds = {v.name: t.numpy() for v, t in zip(model.graph.inputs, seen, strict=True)}
        assert not _differ(want, dict(zip(want, on_ort(feeds).values(), strict=True)))
