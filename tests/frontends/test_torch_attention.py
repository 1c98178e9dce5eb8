"""scaled_dot_product_attention and the modules on top of it, in every form: the graph computes what torch does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphpress as gp

B, H, S, E = 2, 4, 6, 8
LEAST = 100.0  # dB: float32 throughout

Q, K, V = (torch.randn(B, H, S, E, generator=torch.Generator().manual_seed(i)) for i in range(3))
SEEN = torch.rand(B, H, S, S, generator=torch.Generator().manual_seed(3)) > 0.4
SEEN[..., 0] = True
NOISE = torch.randn(B, H, S, S, generator=torch.Generator().manual_seed(4))


def _masks(*shape: int, blind: bool = False) -> dict[str, torch.Tensor]:
    """A boolean mask and one to add; ``blind``: the last query, or the last sample, sees nothing."""
    cut = tuple(slice(0, n) for n in shape)
    lead = (0,) * (4 - len(shape))
    seen, noise = SEEN[lead][cut].clone(), NOISE[lead][cut]
    if blind:
        seen[(-1,) if shape[-2] == 1 else (..., -1, slice(None))] = False
    return {"bool": seen, "float": noise.masked_fill(~seen, -torch.inf)}


SHAPES = [(S, S), (1, S), (H, S, S), (1, 1, S), (B, 1, 1, S), (B, 1, S, S), (1, 1, 1, S), (1, H, 1, S), (B, 1, S, 1)]
Form = tuple[tuple[torch.Tensor, ...], torch.Tensor | None, dict[str, Any]]


def _forms() -> dict[str, Form]:
    found: dict[str, Form] = {}
    narrow, late, early = (Q, K[:, :2], V[:, :2]), (Q[:, :, :3], K, V), (Q, K[:, :, :3], V[:, :, :3])
    window = (torch.arange(S)[:, None] - torch.arange(S)).abs() < 2
    for kind in ("bool", "float"):
        found |= {f"{kind} {shape}": ((Q, K, V), _masks(*shape)[kind], {}) for shape in SHAPES}
        for shape in ((S, S), (B, 1, S, S), (B, 1, 1, S)):
            found[f"{kind} blind {shape}"] = (Q, K, V), _masks(*shape, blind=True)[kind], {}
        keys = _masks(B, 1, 1, S)[kind]
        found[f"{kind} grouped"] = narrow, keys, {"enable_gqa": True}
        found[f"{kind} one key head"] = (Q, K[:, :1], V[:, :1]), keys, {}
        found[f"{kind} cross"] = late, keys, {"scale": 0.3}
        found[f"{kind} rank 3"] = (Q[0], K[0], V[0]), _masks(H, 1, S)[kind], {}
        found[f"{kind} rank 5"] = tuple(x[None] for x in (Q, K, V)), keys[None], {}
    found |= {
        "plain": ((Q, K, V), None, {}), "window": ((Q, K, V), window, {}), "scale": ((Q, K, V), None, {"scale": 1.0}),
        "turned": ((Q, K, V), None, {"scale": -0.3}), "few values": ((Q, K, V[..., :4]), None, {}),
        "causal": ((Q, K, V), None, {"is_causal": True}), "causal, few queries": (late, None, {"is_causal": True}),
        "causal, few keys": (early, None, {"is_causal": True}), "grouped": (narrow, None, {"enable_gqa": True}),
        "grouped, all": ((Q, K, V), None, {"enable_gqa": True}), "one query head": ((Q[:, :1], K, V), None, {}),
        "one key head": ((Q, K[:, :1], V[:, :1]), None, {"is_causal": True}),
        "one key head, all values": ((Q, K[:, :1], V), None, {}), "one batch of keys": ((Q, K[:1], V[:1]), None, {}),
        "rank 2": ((Q[0, 0], K[0, 0], V[0, 0]), None, {}), "rank 3": ((Q[0], K[0], V[0]), None, {"is_causal": True}),
        "rank 5, grouped": (tuple(x[None] for x in narrow), None, {"enable_gqa": True, "is_causal": True}),
    }  # fmt: skip
    return found


class All(nn.Module):
    """Every form at once: one trace."""

    def __init__(self, forms: dict[str, Form]) -> None:
        super().__init__()
        self.options = {name: options for name, (_, _, options) in forms.items()}

    def forward(self, given: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {
            name: F.scaled_dot_product_attention(*given[name][0], attn_mask=given[name][1], **options)
            for name, options in self.options.items()
        }


def _sqnr(want: torch.Tensor, got: Any) -> float:
    a, b = want.detach().numpy().astype(np.float64), np.asarray(got, np.float64)
    assert a.shape == b.shape
    noise = ((a - b) ** 2).sum()
    return float(10 * np.log10((a**2).sum() / noise)) if noise else np.inf


def _differ(want: dict[str, torch.Tensor], got: dict[str, Any]) -> dict[str, float]:
    assert list(want) == list(got)
    return {name: found for name in want if not (found := _sqnr(want[name], got[name])) >= LEAST}


@pytest.mark.parametrize("opset", [18, 20, 23])
def test_every_form(opset: int) -> None:
    forms = _forms()
    given = {name: (qkv, mask) for name, (qkv, mask, _) in forms.items()}
    module = All(forms).eval()
    model = gp.trace(module, (given,), opset=opset)
    want = module(given)
    tensors = [t for qkv, mask in given.values() for t in (*qkv, mask) if t is not None]
    feeds = {v.name: t.numpy() for v, t in zip(model.graph.inputs, tensors, strict=True)}
    assert not _differ(want, dict(zip(want, gp.lower(model)(feeds).values(), strict=True)))
    assert not _differ(want, gp.lower(model, "torch-cpu")(given))


@pytest.mark.parametrize("opset", [20, 23])
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
        self.encoder = nn.TransformerEncoder(layer, 2)
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


@pytest.mark.parametrize("last", [True, False], ids=["padding last", "padding first"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of nested tensors
def test_modules_of_torch(last: bool) -> None:
    """An encoder puts zeros in place of padding where it is last, before its last norm."""
    torch.manual_seed(0)
    module, x, padded = Stack().eval(), torch.randn(2, 5, 16), torch.zeros(2, 5, dtype=torch.bool)
    padded[1, 3:] = True
    padded = padded if last else padded.flip(1)
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
    mask = mask if last else mask.flip(0, 1)
    model = gp.trace(module, (x, torch.zeros_like(padded), mask))
    assert torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        want = module(x, padded, mask)
        assert not _differ(want, gp.lower(model, "torch-cpu")(x, padded, mask))
    assert not _differ(want, gp.lower(model)({"x": x.numpy(), "padded": padded.numpy(), "mask": mask.numpy()}))
