"""Losses over classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F

from graphpress.backends.fx.operands import Tensor

_NONE = -(2**31)  # no class has this number


def negative_log_likelihood_loss(
    x: Tensor, target: Tensor, weight: Tensor | None = None, *, ignore_index: int | None = None, reduction: str = "mean"
) -> Tensor:
    """Over axis 1 of log-probabilities; a mean is weighted and leaves out what is ignored."""
    return F.nll_loss(
        x, target.long(), weight, ignore_index=_NONE if ignore_index is None else ignore_index, reduction=reduction
    )


def softmax_cross_entropy_loss(
    scores: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """(loss, log-probabilities)."""
    logs = F.log_softmax(scores, 1)
    return negative_log_likelihood_loss(logs, labels, weights, ignore_index=ignore_index, reduction=reduction), logs


OPS: dict[str, Callable[..., Any]] = {
    "NegativeLogLikelihoodLoss": negative_log_likelihood_loss, "SoftmaxCrossEntropyLoss": softmax_cross_entropy_loss,
}  # fmt: skip
