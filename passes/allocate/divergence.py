"""How far the outputs of a rewritten model are from those of the float one, as one number a sample."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from graphpress.job.natures import Form, Kind, Nature

# Of the softmax over one row a sample: a confident classifier says next to nothing at temperature 1, so that a few
# doubtful samples would decide; at 4 a sample is worth about four (ResNet-20 and -56). Tokens are many anyway.
TEMPERATURE = 4.0


def temperature(rank: int) -> float:
    """Of the softmax over an output of this rank."""
    return TEMPERATURE if rank == 2 else 1.0


def divergence(
    before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], wanted: Mapping[str, Nature]
) -> float:
    """Sum over the outputs of how far each is from before, by its nature.

    Scores of classes: mean over rows of KL(before || after) in nats. All else: power of the difference as a share of
    the power; 1 where the shape changed. What is only likely to be scores counts as both: a softmax does not see what
    moves all of them. What is not among ``after`` did not change. NaN where an output is.
    """
    return sum(_one(before[n], after[n], nature) for n, nature in wanted.items() if n in after)


def _one(a: np.ndarray, b: np.ndarray, nature: Nature) -> float:
    if a.shape != b.shape:
        return 1.0
    p, q = a.astype(np.float64), b.astype(np.float64)
    if nature.kind is not Kind.CLASSES:
        return noise_share(p, q)
    log_p, log_q = (_log(x, nature) for x in (p, q))
    with np.errstate(invalid="ignore"):
        terms = np.where(np.isneginf(log_p), 0.0, np.exp(log_p) * (log_p - log_q))
    if not np.isfinite(terms).all():
        return float(np.nan)
    nats = float(np.maximum(terms.sum(nature.axis), 0.0).mean())
    return nats if nature.sure else nats + noise_share(p, q)


def noise_share(p: np.ndarray, q: np.ndarray) -> float:
    """Power of the difference as a share of the power of ``p``; 1 for any difference from zero."""
    power, noise = float(np.sum(p * p)), float(np.sum((p - q) ** 2))
    return noise / power if power > 0 or np.isnan(power) else float(noise > 0)


def _log(x: np.ndarray, nature: Nature) -> np.ndarray:
    x = np.log(np.maximum(x, 1e-12)) if nature.form is Form.PROBABILITIES else x
    x = x / temperature(x.ndim)
    shifted = x - x.max(nature.axis, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(nature.axis, keepdims=True)))
