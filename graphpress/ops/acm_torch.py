"""What ``graphpress::ACM`` computes, in torch: ordered by learners to run, all learners with soft gates to train."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch

Form: TypeAlias = tuple[str, bool, bool]  # activation, gated, int8


def acm(
    x: torch.Tensor,
    gate: torch.Tensor,
    gate_bias: torch.Tensor,
    price: torch.Tensor,
    w1: torch.Tensor,
    b1: torch.Tensor,
    w2: torch.Tensor,
    b2: torch.Tensor,
    *,
    activation: str,
    gated: int,
    min_learners: int,
    int8: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The operator. With gradients: every learner, times a one-hot gate that passes the softmax's gradient."""
    import torch

    form = (activation, bool(gated), bool(int8))
    values = scores(x, gate, gate_bias, price)
    learners = values.argmax(-1) + min_learners
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, gate, gate_bias, w1, b1, w2, b2)):
        weights = taken(straight_through(values), min_learners)
        return _all(x, weights, w1, b1, w2, b2, form), learners
    return ordered(x, learners, w1, b1, w2, b2, form), learners


def scores(x: torch.Tensor, gate: torch.Tensor, gate_bias: torch.Tensor, price: torch.Tensor | float) -> torch.Tensor:
    """[..., choices]: what each number of learners is worth to each token, its price paid."""
    import torch

    values = x @ gate + gate_bias
    return values - price * torch.arange(values.shape[-1], dtype=values.dtype, device=values.device)


def straight_through(values: torch.Tensor) -> torch.Tensor:
    """The one-hot of the largest, with the gradient of the softmax."""
    import torch

    soft = torch.softmax(values, -1)
    hard = torch.nn.functional.one_hot(values.argmax(-1), values.shape[-1]).to(soft.dtype)
    return hard + soft - soft.detach()


def taken(chosen: torch.Tensor, min_learners: int) -> torch.Tensor:
    """[..., N] from [..., choices]: the share with which learner j is among those taken, sum of chosen k > j."""
    import torch

    above = chosen.flip(-1).cumsum(-1).flip(-1)[..., 1:]
    return torch.cat([torch.ones_like(above[..., :1]).expand(*above.shape[:-1], min_learners), above], -1)


def learner(x: torch.Tensor, w1: torch.Tensor, b1: torch.Tensor, w2: torch.Tensor, form: Form) -> torch.Tensor:
    """One learner: x [..., width], w1 [width, inner], b1 [inner], w2 [hidden, out]; gives [..., out]."""
    activation, gated, int8 = form
    h = rows_of_codes(x) if int8 else x
    h = h @ w1 + b1
    if gated:
        left, right = h.chunk(2, -1)
        h = activate(left, activation) * right
    else:
        h = activate(h, activation)
    return (rows_of_codes(h) if int8 else h) @ w2


def activate(x: torch.Tensor, activation: str) -> torch.Tensor:
    """The activation of that name."""
    import torch.nn.functional as F

    match activation:
        case "relu":
            return F.relu(x)
        case "silu":
            return F.silu(x)
        case "gelu":
            return F.gelu(x)
        case "gelu-tanh":
            return F.gelu(x, approximate="tanh")
        case "quick-gelu":
            return x * (1.702 * x).sigmoid()
        case "relu-squared":
            return F.relu(x).square()
        case "tanh":
            return x.tanh()
        case "sigmoid":
            return x.sigmoid()
        case "hard-swish":
            return F.hardswish(x)
    return x


def rows_of_codes(x: torch.Tensor) -> torch.Tensor:
    """Each row on a grid of 255 steps, by its largest value; the gradient passes as if it were not."""
    import torch

    scale = (x.detach().abs().amax(-1, keepdim=True) / 127.0).clamp_min(torch.finfo(torch.float32).tiny)
    rounded = torch.round(x.detach() / scale) * scale
    return x + (rounded - x.detach()) if x.requires_grad else rounded


def prefixes(
    x: torch.Tensor, w1: torch.Tensor, b1: torch.Tensor, w2: torch.Tensor, b2: torch.Tensor, form: Form
) -> list[torch.Tensor]:
    """h_0 .. h_N, each [..., out]: what comes out where every token takes so many learners."""
    found = [b2.expand(*x.shape[:-1], b2.shape[0])]
    for i in range(w1.shape[0]):
        found.append(found[-1] + learner(x, w1[i], b1[i], w2[i], form))
    return found


def _all(
    x: torch.Tensor, weights: torch.Tensor, w1: torch.Tensor, b1: torch.Tensor, w2: torch.Tensor, b2: torch.Tensor,
    form: Form,
) -> torch.Tensor:  # fmt: skip
    y = b2.expand(*x.shape[:-1], b2.shape[0])
    for i in range(w1.shape[0]):
        y = y + weights[..., i : i + 1] * learner(x, w1[i], b1[i], w2[i], form)
    return y


def ordered(
    x: torch.Tensor, learners: torch.Tensor, w1: torch.Tensor, b1: torch.Tensor, w2: torch.Tensor, b2: torch.Tensor,
    form: Form,
) -> torch.Tensor:  # fmt: skip
    """Only the learners taken: tokens in the order of their learners, most first, learner j on the leading rows.

    Args:
        x: [..., width].
        learners: [...], how many each token takes.
    """
    import torch

    return torch.ops.graphpress.acm_ordered(x, learners, w1, b1, w2, b2, *form)


@functools.cache
def register() -> None:
    """Make ``ordered`` an operator of torch: how many rows a learner has is data, which no compiler can look into."""
    import torch

    schema = "(Tensor x, Tensor k, Tensor w1, Tensor b1, Tensor w2, Tensor b2, str activation, bool gated, bool int8)"

    @torch.library.custom_op("graphpress::acm_ordered", mutates_args=(), schema=f"{schema} -> Tensor")
    def run(
        x: torch.Tensor, k: torch.Tensor, w1: torch.Tensor, b1: torch.Tensor, w2: torch.Tensor,
        b2: torch.Tensor, activation: str, gated: bool, int8: bool,
    ) -> torch.Tensor:  # fmt: skip
        flat, counts = x.reshape(-1, x.shape[-1]), k.reshape(-1)
        order = torch.argsort(counts, descending=True, stable=True)
        rows = [int((counts > i).sum()) for i in range(w1.shape[0])]
        sorted_x = flat[order]
        total = b2.expand(flat.shape[0], b2.shape[0]).contiguous()
        for i, n in enumerate(rows):
            if n:
                total[:n] += learner(sorted_x[:n], w1[i], b1[i], w2[i], (activation, gated, int8))
        y = torch.empty_like(total)
        y[order] = total
        return y.reshape(*x.shape[:-1], b2.shape[0])

    @run.register_fake
    def _(x: Any, k: Any, w1: Any, b1: Any, w2: Any, b2: Any, activation: str, gated: bool, int8: bool) -> Any:
        return x.new_empty((*x.shape[:-1], b2.shape[0]))
