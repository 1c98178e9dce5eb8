"""Linear attention: a recurrent state of keys and values, run chunk by chunk instead of token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from graphpress.backends.fx.operands import Tensor
from graphpress.errors import Unsupported


def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_state: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    q_num_heads: int,
    kv_num_heads: int,
    chunk_size: int = 64,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Tensor, Tensor]:
    """(output, present_state). With S the state, g the decay, b the update rate and a = exp(g):

    S <- a S + b k (v - (a S)^T k)^T, o = scale S^T q. A rule without decay has no a, one without delta adds k v^T.
    Inputs are (batch, time, heads * size), the state is (batch, heads, key size, value size). A chunk is solved as in
    Yang et al., Gated Delta Networks (arXiv:2412.06464), section 3.3, in float32 at least.
    """
    if update_rule not in ("linear", "gated", "delta", "gated_delta"):
        raise Unsupported(f"has no update rule {update_rule!r}")
    group = q_num_heads // kv_num_heads
    dtype = torch.promote_types(query.dtype, torch.float32)
    q, k, v = (_split(x.to(dtype), n) for x, n in ((query, q_num_heads), (key, kv_num_heads), (value, kv_num_heads)))
    q = q * (scale or q.shape[-1] ** -0.5)
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    gates = _split(decay.to(dtype), kv_num_heads).repeat_interleave(group, 1) if decay is not None else None
    rates = beta.to(dtype).transpose(1, 2).unsqueeze(-1) if beta is not None else None  # (batch, heads or 1, time, 1)
    if rates is not None and rates.shape[1] != 1:
        rates = rates.repeat_interleave(group, 1)
    state = k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
    if past_state is not None:
        state = past_state.to(dtype).repeat_interleave(group, 1)
    done = []
    for start in range(0, q.shape[2], max(chunk_size, 1)):
        part = slice(start, start + max(chunk_size, 1))
        g, b = (None if x is None else x[:, :, part] for x in (gates, rates))
        y, state = _chunk(q[:, :, part], k[:, :, part], v[:, :, part], g, b, state)
        done.append(y)
    output = torch.cat(done, 2).transpose(1, 2).flatten(2).to(query.dtype)
    return output, state[:, ::group].to(query.dtype if past_state is None else past_state.dtype)


def _split(x: Tensor, heads: int) -> Tensor:
    """(batch, time, heads * size) as (batch, heads, time, size)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _chunk(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, rate: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The outputs of some tokens and the state behind them.

    Token t reads the state before the chunk, decayed, and what each token s before it has written: u_s under the key
    k_s. Without the delta rule u is v; with it u solves a triangular system, since each u_t depends on those before.
    """
    if decay is None:
        total = left = None
        reads, seen = k @ k.mT, q @ k.mT
    else:
        total = decay.cumsum(2)
        left = (total[:, :, -1:] - total).exp()  # from each token to the chunk's end
        reads, seen = _decayed(k, k, total), _decayed(q, k, total)
    old_k, old_q = (x if total is None else x * total.exp() for x in (k, q))
    u = v
    if rate is not None:
        eye = torch.eye(k.shape[2], dtype=k.dtype, device=k.device)
        system = eye + rate * reads.tril(-1)
        u = torch.linalg.solve_triangular(system, rate * (v - old_k @ state), upper=False, unitriangular=True)
    y = old_q @ state + seen.tril() @ u
    if total is not None and left is not None:
        state, k = state * total[:, :, -1].exp().unsqueeze(-1), k * left
    return y, state + k.mT @ u


def _decayed(x: Tensor, k: Tensor, total: Tensor) -> Tensor:
    """x_t . k_s, decayed from s to t; differences of logarithms cannot overflow where the decay itself would."""
    gap = (total.unsqueeze(3) - total.unsqueeze(2)).clamp(max=0.0)  # (batch, heads, t, s, key size or 1)
    if gap.shape[-1] == 1:
        return (x @ k.mT) * gap.squeeze(-1).exp()
    return torch.einsum("bhtd,bhsd,bhtsd->bhts", x, k, gap.exp())


OPS: dict[str, Callable[..., Any]] = {"LinearAttention": linear_attention}
