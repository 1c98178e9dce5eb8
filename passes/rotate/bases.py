"""Which orthogonal matrix turns how many channels: random-sign Hadamard, random orthogonal, block Hadamard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from graphpress.errors import BadRequest
from graphpress.passes.rotate.orders import exists, hadamard, largest_order, order_factors

Kind: TypeAlias = Literal["auto", "hadamard", "block", "orthogonal"]


@dataclass(frozen=True)
class BasisChoice:
    """What kind of matrix is wanted; see ``Rotate`` for the options."""

    kind: Kind
    block_size: int | None

    def __post_init__(self) -> None:
        if self.block_size is not None:
            if self.kind != "block":
                raise BadRequest(f"kind {self.kind!r} has no blocks", where="rotate: option 'block_size'")
            hadamard(self.block_size)  # raises, and names the nearest orders

    def basis(self, size: int, rng: np.random.Generator) -> np.ndarray | str:
        """An orthogonal float64 matrix [size, size] to be merged into weights, or why there is none.

        Raises:
            BadRequest: A Hadamard matrix was asked for, and none of that order is known.
        """
        if self.kind == "orthogonal":
            return _haar(size, rng)
        block = self.block(size)
        if isinstance(block, str):
            return block
        signs = rng.choice([-1.0, 1.0], size)
        return signs[:, None] * np.kron(np.eye(size // block), hadamard(block) / np.sqrt(block))

    def factors(self, size: int) -> tuple[np.ndarray, np.ndarray] | str:
        """Kronecker factors, float64 and orthogonal, of what turns runs of ``size`` at run time, or why there are none.

        Raises:
            BadRequest: As ``basis``.
        """
        block = self.block(size)
        if isinstance(block, str):
            return block
        a, b = order_factors(block)
        return hadamard(a) / np.sqrt(a), hadamard(b) / np.sqrt(b)

    def block(self, size: int) -> int | str:
        """Channels that a Hadamard matrix mixes: all where there is one, else what divides them."""
        if self.kind == "hadamard":
            hadamard(size)
        if self.kind == "block":
            block = self.block_size or size & -size
        else:
            block = size if exists(size) else largest_order(size)
        if size % block:
            return f"blocks of {block} do not divide its {size} channels"
        return block if block > 1 else f"no Hadamard matrix of an order above 1 divides its {size} channels"


def _haar(size: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform over the orthogonal matrices (Mezzadri, arXiv:math-ph/0609050)."""
    q, r = np.linalg.qr(rng.normal(size=(size, size)))
    return np.asarray(q * np.sign(np.diag(r)))
