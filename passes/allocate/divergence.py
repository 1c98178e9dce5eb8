"""How far the outputs of a rewritten model are from those of the float one, as one number a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

import numpy as np
import onnx_ir as ir

from graphpress.errors import BadRequest


class OutputKind(Enum):
    """What an output holds."""

    LOGITS = "logits"  # [N, classes] or [N, tokens, classes]: KL of their softmax along the last axis
    PROBABILITIES = "probabilities"  # the result of a Softmax: KL likewise, of their logarithms
    VALUES = "values"  # anything else: power of the difference as a share of the power


# Of the softmax over one row a sample: a confident classifier says next to nothing at temperature 1, so that a few
# doubtful samples would decide; at 4 a sample is worth about four (ResNet-20 and -56). Tokens are many anyway.
TEMPERATURE = 4.0


def temperature(rank: int) -> float:
    """Of the softmax over an output of this rank."""
    return TEMPERATURE if rank == 2 else 1.0


def kinds(model: ir.Model, names: Sequence[str] | None = None) -> dict[str, OutputKind]:
    """What each float output of the graph (of those in ``names``) holds.

    Raises:
        BadRequest: None of them is float.
    """
    found = {}
    for value in model.graph.outputs:
        if value.dtype is None or value.dtype.is_floating_point():
            found[value.name or ""] = _kind(value)
    if not found:
        raise BadRequest("no output is float, so there is nothing to compare", where="allocate: sensitivity")
    return {n: k for n, k in found.items() if names is None or n in names}


def _kind(value: ir.Value) -> OutputKind:
    node = value.producer()
    if node is not None and node.op_type == "Softmax" and node.domain == "":
        return OutputKind.PROBABILITIES
    shape = value.shape
    classes = shape is not None and len(shape) in (2, 3) and not (isinstance(shape[-1], int) and shape[-1] < 2)
    return OutputKind.LOGITS if classes else OutputKind.VALUES


def divergence(
    before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], wanted: Mapping[str, OutputKind]
) -> float:
    """Sum over the outputs of the mean over rows of KL(before || after) in nats, or of the share of noise.

    What is not among ``after`` did not change. NaN where an output is.
    """
    return sum(_one(before[n], after[n], kind) for n, kind in wanted.items() if n in after)


def _one(a: np.ndarray, b: np.ndarray, kind: OutputKind) -> float:
    p, q = a.astype(np.float64), b.astype(np.float64)
    if kind is OutputKind.VALUES:
        power = float(np.sum(p * p))
        noise = float(np.sum((p - q) ** 2))
        return noise / power if power > 0 or np.isnan(power) else float(noise > 0)
    log_p, log_q = (_log(x, kind) for x in (p, q))
    with np.errstate(invalid="ignore"):
        terms = np.where(np.isneginf(log_p), 0.0, np.exp(log_p) * (log_p - log_q))
    return float(np.maximum(terms.sum(-1), 0.0).mean()) if np.isfinite(terms).all() else float(np.nan)


def _log(x: np.ndarray, kind: OutputKind) -> np.ndarray:
    x = (np.log(np.maximum(x, 1e-12)) if kind is OutputKind.PROBABILITIES else x) / temperature(x.ndim)
    top = x.max(-1, keepdims=True)
    shifted = x - top
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))
