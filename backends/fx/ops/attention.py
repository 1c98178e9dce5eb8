"""Attention, in torch's fused kernel wherever that means the same; rotary embedding; attention with modifier graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F

from graphpress.backends.fx import dtypes
from graphpress.backends.fx.operands import Tensor

_HALF = (torch.float16, torch.bfloat16)
_SCORES, _CAPPED, _BIASED, _PROBABILITIES = range(4)  # qk_matmul_output_mode


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    nonpad_kv_seqlen: Tensor | None = None,
    *,
    is_causal: int = 0,
    q_num_heads: int | None = None,
    kv_num_heads: int | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    qk_matmul_output_mode: int = 0,
    left_window_size: int = -1,
    right_window_size: int = -1,
    outputs: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(Y, present_key, present_value, qk_matmul_output); the last is None where it is not asked for."""
    packed = q.dim() == 3
    if packed:
        q, k, v = _split(q, q_num_heads), _split(k, kv_num_heads), _split(v, kv_num_heads)
    offset: Any = 0  # of the first query's position from the first key's
    if past_key is not None and past_value is not None:
        k, v, offset = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2), past_key.shape[2]
    elif nonpad_kv_seqlen is not None:
        offset = nonpad_kv_seqlen.reshape(-1, 1, 1, 1) - q.shape[2]
    left = None if left_window_size < 0 else left_window_size
    right = 0 if is_causal else None if right_window_size < 0 else right_window_size
    fused = softcap == 0 and outputs < 4 and _enough(q.dtype, softmax_precision)
    bare = attn_mask is None and nonpad_kv_seqlen is None and left is None
    if fused and bare and is_causal and past_key is None:
        y, qk = _fused(q, k, v, None, scale, causal=True), None
    else:
        one = isinstance(offset, int) and q.shape[2] == 1 and k.shape[2] == offset + 1
        allowed = None if one and left is None else _window(q, k.shape[2], offset, left, right)
        if nonpad_kv_seqlen is not None:
            filled = torch.arange(k.shape[2], device=q.device) < nonpad_kv_seqlen.reshape(-1, 1, 1, 1)
            allowed = filled if allowed is None else allowed & filled
        mask = _combined(attn_mask, allowed, k.shape[2], q.dtype)
        if fused:
            y, qk = _fused(q, k, v, mask, scale), None
        else:
            y, qk = _plain(q, k, v, mask, scale, softcap, softmax_precision, qk_matmul_output_mode)
    return (y.transpose(1, 2).flatten(2) if packed else y), k, v, qk


def _split(x: Tensor, heads: int | None) -> Tensor:
    """(batch, length, heads * size) as (batch, heads, length, size)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _enough(dtype: torch.dtype, precision: int | None) -> bool:
    """Whether the fused kernel's softmax, which is in float32 for half types, is in the precision asked for."""
    asked = dtype if precision is None else dtypes.torch_dtype(ir.DataType(precision).name)
    return asked == dtype or (asked == torch.float32 and dtype in _HALF)


def _window(q: Tensor, keys: int, offset: Any, left: int | None, right: int | None) -> Tensor | None:
    """Which keys each query may see: from ``left`` positions before its own to ``right`` positions behind."""
    if left is None and right is None:
        return None
    position = torch.arange(q.shape[2], device=q.device).unsqueeze(1) + offset
    key = torch.arange(keys, device=q.device)
    if left is None:
        return key <= position + right
    return key >= position - left if right is None else (key >= position - left) & (key <= position + right)


def _combined(mask: Tensor | None, allowed: Tensor | None, keys: int, dtype: torch.dtype) -> Tensor | None:
    """One mask of both, padded to all keys: boolean, or added to the scores."""
    if mask is None:
        return allowed
    boolean = mask.dtype == torch.bool
    mask = mask if boolean else mask.to(dtype)
    if mask.shape[-1] < keys:
        mask = F.pad(mask, (0, keys - mask.shape[-1]), value=False if boolean else float("-inf"))
    if allowed is not None:
        mask = mask & allowed if boolean else torch.where(allowed, mask, float("-inf"))
    return mask.unsqueeze(0) if mask.dim() in (1, 3) else mask  # the fused kernels know ranks 2 and 4


def _fused(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, *, causal: bool = False
) -> Tensor:
    dtype, gqa = q.dtype, q.shape[1] != k.shape[1]
    if (
        dtype == torch.float16 and q.device.type == "cpu"
    ):  # where the kernel rounds more than the standard's test allows
        q, k, v = q.float(), k.float(), v.float()
        mask = mask if mask is None or mask.dtype == torch.bool else mask.float()
    v = v.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=gqa).to(dtype)


def _plain(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, softcap: float,
    precision: int | None, mode: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(the result, what the mode asks to see). A query without any key gives zeros."""
    raw = torch.matmul(q * _scale(q, scale), _repeated(k, q).transpose(-1, -2))
    capped = softcap * torch.tanh(raw / softcap) if softcap else raw
    biased, dead = capped, None
    if mask is not None:
        off = ~mask if mask.dtype == torch.bool else mask.isneginf()
        biased = capped.masked_fill(off, float("-inf")) if mask.dtype == torch.bool else capped + mask
        dead = off.all(-1, keepdim=True)
    logits = biased if precision is None else biased.to(dtypes.torch_dtype(ir.DataType(precision).name))
    if dead is not None:
        logits = logits.masked_fill(dead, 0.0)  # the softmax of -inf alone has no gradient either
    weights = torch.softmax(logits, -1).to(q.dtype)
    if dead is not None:
        weights = weights.masked_fill(dead, 0.0)
    return torch.matmul(weights, _repeated(v, q).to(q.dtype)), (raw, capped, biased, weights)[mode]


def _scale(q: Tensor, scale: float | None) -> float:
    return float(q.shape[-1] ** -0.5) if scale is None else scale


def _repeated(x: Tensor, q: Tensor) -> Tensor:
    """Each head of keys or values as often as there are heads of queries for it."""
    return x if x.shape[1] == q.shape[1] else x.repeat_interleave(q.shape[1] // x.shape[1], 1)


def flex_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    score_mod: Any = None,
    prob_mod: Any = None,
    softmax_precision: int | None = None,
) -> Tensor:
    """Attention whose scores and probabilities graphs may change; between them it is in float32 at least."""
    own = torch.float32 if q.dtype in _HALF else q.dtype
    dtype = own if softmax_precision is None else dtypes.torch_dtype(ir.DataType(softmax_precision).name)
    scores = torch.matmul(q * _scale(q, scale), _repeated(k, q).transpose(-1, -2)).to(dtype)
    weights = torch.softmax(_modified(scores, score_mod), -1)
    return torch.matmul(_modified(weights, prob_mod), _repeated(v, q).to(dtype)).to(q.dtype)


def _modified(x: Tensor, graph: Any) -> Tensor:
    if graph is None:
        return x
    module, captured, *_ = graph
    result: Tensor = module(x, *captured)[0]
    return result


def rotary_embedding(
    x: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    position_ids: Tensor | None = None,
    *,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    interleaved: int = 0,
) -> Tensor:
    """Rotate pairs of features by their token's angle (RoFormer, arXiv:2104.09864, eq. 34)."""
    heads = x.unflatten(2, (num_heads, -1)) if x.dim() == 3 else x
    axis = 2 if x.dim() == 3 else 1  # of the heads
    cos, sin = (c if position_ids is None else c[position_ids] for c in (cos_cache, sin_cache))
    cos, sin = cos.unsqueeze(axis), sin.unsqueeze(axis)
    size = rotary_embedding_dim or heads.shape[-1]
    turned, kept = heads[..., :size], heads[..., size:]
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    parts = (a * cos - b * sin, a * sin + b * cos)
    y = torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)
    y = torch.cat((y, kept), -1) if rotary_embedding_dim else y
    return y.flatten(2) if x.dim() == 3 else y


OPS: dict[str, Callable[..., Any]] = {
    "Attention": attention, "FlexAttention": flex_attention, "RotaryEmbedding": rotary_embedding,
}  # fmt: skip
