"""``low_rank``: a branch beside a quantized layer that makes up for its rounding, and then fades (arXiv:2505.11497).

y = Q(W) x + L diag(gamma) R x, where x is what the layer reads, quantized too if it is. L R is at first the best
approximation of W - Q(W) of its rank, with the square roots of the singular values on both sides; columns are in the
order of these. gamma is 0 when it is inserted, so nothing changes; whoever trains sets it to 1 and takes it back to 0.
Only then it can be folded: the quantized weight has no room for the branch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.errors import BadRequest
from graphpress.passes.recover.adapters import beside
from graphpress.passes.recover.adapters.base import Adapter, Attached, Scribe, evaluated, take_away
from graphpress.passes.recover.adapters.beside import DOWN, GAMMA, UP
from graphpress.passes.structure.layers.linear import Linear


@dataclass(frozen=True)
class LowRank(Adapter):
    """L diag(gamma) R beside a layer.

    Attributes:
        rank: Columns of L; of a smaller matrix those beyond its own rank are zero.
    """

    rank: int = 32

    name = "low_rank"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise BadRequest(f"rank {self.rank} is not positive", where="adapter 'low_rank'")

    def refusal(self, model: ir.Model, layer: Linear) -> str | None:
        if layer.groups != 1:
            return "a convolution in groups has a matrix for each of them"
        read = layer.node.inputs[1]
        if read is layer.weight_value:
            return "its weight is not quantized: there is no rounding to make up for"
        return None if read is not None and read.dtype is not None else "the type of its weight is not known"

    def write(self, model: ir.Model, layer: Linear, ctx: Context) -> None:
        scribe, read = Scribe(self.name, layer), layer.node.inputs[1]
        assert read is not None
        rounded = evaluated(model, read, ctx)
        lost = layer.weight().astype(np.float64) - (rounded.T if layer.transposed else rounded)
        left, right = start(lost.reshape(len(lost), -1), self.rank)
        beside.write(scribe, left, right, np.zeros(self.rank))

    @classmethod
    def fold(cls, model: ir.Model, attached: Attached, ctx: Context) -> None:
        """Take the branch away, once it adds exactly 0."""
        gamma = attached.array(model, GAMMA)
        finite = all(np.isfinite(attached.array(model, part)).all() for part in (DOWN, UP))
        if gamma.any() or not finite:
            raise BadRequest(
                f"its branch still counts: gamma is up to {np.abs(gamma).max():g}" if finite else "it is not finite",
                where=f"adapter 'low_rank' at {attached.site!r}", fix="Let it fade to 0 first.",
            )  # fmt: skip
        take_away(model, attached, "sum")


def start(lost: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """float64 (L [out, rank], R [rank, in]) with L R the best approximation of ``lost`` [out, in]."""
    u, s, v = np.linalg.svd(lost, full_matrices=False)
    return _padded(u[:, :rank] * np.sqrt(s[:rank]), np.sqrt(s[:rank, None]) * v[:rank], rank)


def halved(left: np.ndarray, right: np.ndarray, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """The first ``keep`` columns of L and rows of R with their product split anew, in order of its singular values.

    What is cut off is 0: shapes stay [out, rank] and [rank, in]. float64; the product of what is kept does not change.
    """
    if not keep:
        return np.zeros(left.shape), np.zeros(right.shape)
    q, upper = np.linalg.qr(left[:, :keep].astype(np.float64))
    p, lower = np.linalg.qr(right[:keep].T.astype(np.float64))
    u, s, v = np.linalg.svd(upper @ lower.T, full_matrices=False)
    root = np.sqrt(s)
    return _padded(q @ u * root, root[:, None] * (v @ p.T), left.shape[1])


def _padded(left: np.ndarray, right: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    more = rank - left.shape[1]
    return np.pad(left, ((0, 0), (0, more))), np.pad(right, ((0, more), (0, 0)))


def factors(down: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(L [out, rank], R [rank, in]) of the constants as the graph holds them, of a matrix product or a convolution."""
    if down.ndim == 2:
        return up.T, down.T
    return up.reshape(up.shape[:2]), down.reshape(len(down), -1)


def constants(left: np.ndarray, right: np.ndarray, down: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of ``factors``: (down, up) of the shapes and types of those given."""
    if down.ndim == 2:
        left, right = left.T, right.T
    return right.reshape(down.shape).astype(down.dtype), left.reshape(up.shape).astype(up.dtype)


ADAPTER = LowRank
