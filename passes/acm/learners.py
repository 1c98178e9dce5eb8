"""The learners that a layer is cut into: its own hidden units by importance, or its best directions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphpress.passes.structure.layers.ffn import Block
from graphpress.passes.structure.layers.linear import Linear
from graphpress.passes.structure.layers.rows import Part


@dataclass(frozen=True)
class CutLearners:
    """Weights of all N learners: w1 [N, width, inner], b1 [N, inner], w2 [N, hidden, out], b2 [out]; float32."""

    w1: np.ndarray
    b1: np.ndarray
    w2: np.ndarray
    b2: np.ndarray


def order(block: Block, power: np.ndarray | None) -> np.ndarray:
    """The hidden units, those first that give most of the output's power.

    Args:
        power: [hidden], mean square of each unit's activation; None where there is no data: by its weights alone.
    """
    down = block.down.weight().astype(np.float64)
    strength = (down**2).sum(axis=0)
    if power is None:
        power = (block.up.weight().astype(np.float64) ** 2).sum(axis=1)
    return np.argsort(-strength * power, kind="stable")


def block_learners(block: Block, count: int, fraction: float, power: np.ndarray | None) -> CutLearners:
    """The block's units dealt to ``count`` learners, the most important to the first.

    With ``fraction`` 1 all are dealt and the learners together are the block, to the last bit but for the order of
    additions; units that fill up the last learner are zero.
    """
    size = learner_size(block.hidden, count, fraction)
    chosen = order(block, power)[: min(count * size, block.hidden)]
    gated = [block.up, block.gate] if block.gate is not None else [block.up]
    w1 = [_deal(v.weight()[chosen].T, count, size) for v in gated]
    b1 = [_deal(_bias(v)[None, chosen], count, size)[:, 0] for v in gated]
    w2 = np.zeros((count * size, block.out), np.float32)
    w2[: len(chosen)] = block.down.weight()[:, chosen].T
    return CutLearners(
        np.concatenate(w1, -1), np.concatenate(b1, -1), w2.reshape(count, size, block.out), _bias(block.down)
    )


def learner_size(hidden: int, count: int, fraction: float) -> int:
    """Hidden units of one learner: hidden * fraction / count, rounded up (arXiv:2312.10193, appendix)."""
    return max(1, -(-round(hidden * fraction) // count))


def projection_size(width: int, out: int, count: int, fraction: float) -> int:
    """Hidden units of one learner of a lone projection, so that all cost ``fraction`` of it."""
    return max(1, round(fraction / count * width * out / (width + out)))


def projection_learners(layer: Linear, count: int, fraction: float, moment: np.ndarray | None) -> CutLearners:
    """A projection as products of two thin matrices: the best directions of its output to the first learner.

    Args:
        moment: [width, width], mean of x x^T, so that directions which the data has count; None for all alike.
    """
    weight = layer.weight().astype(np.float64).T  # [width, out]
    size = projection_size(weight.shape[0], weight.shape[1], count, fraction)
    root, inverse = _roots(moment, weight.shape[0])
    left, values, right = np.linalg.svd(root @ weight, full_matrices=False)
    kept = min(count * size, len(values))
    w1, w2 = np.zeros((weight.shape[0], count * size)), np.zeros((count * size, weight.shape[1]))
    scale = np.sqrt(values[:kept])
    w1[:, :kept], w2[:kept] = inverse @ left[:, :kept] * scale, scale[:, None] * right[:kept]
    return CutLearners(
        _deal(w1, count, size), np.zeros((count, size), np.float32),
        w2.reshape(count, size, -1).astype(np.float32), _bias(layer),
    )  # fmt: skip


def _roots(moment: np.ndarray | None, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(square root, its inverse) of a second moment; directions that the data lacks count a little."""
    if moment is None:
        return np.eye(width), np.eye(width)
    values, vectors = np.linalg.eigh(moment)
    values = np.sqrt(np.maximum(values, 1e-4 * max(values.max(), 1e-30)))
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T


def _deal(columns: np.ndarray, count: int, size: int) -> np.ndarray:
    """[rows, units] as [count, rows, size], filled up with zeros."""
    filled = np.zeros((columns.shape[0], count * size), np.float32)
    filled[:, : columns.shape[1]] = columns
    return np.ascontiguousarray(filled.reshape(columns.shape[0], count, size).transpose(1, 0, 2))


def _bias(layer: Part) -> np.ndarray:
    bias = layer.bias()
    return np.zeros(layer.shape[0], np.float32) if bias is None else np.array(bias, np.float32)
