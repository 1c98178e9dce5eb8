"""Hadamard matrices: Sylvester's, Paley's two kinds over any finite field, Goethals' and Seidel's, and Kronecker
products of these: every multiple of 4 up to 512, and most beyond.

A Hadamard matrix of order n has entries +-1 and orthogonal rows: H H^T = n I. Orders are 1, 2 and multiples of 4.
(Paley, On orthogonal matrices, J. Math. Phys. 12, 1933; for the third see ``quadruples``.)
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np

from graphpress.errors import BadRequest
from graphpress.ops.hadamard import sylvester
from graphpress.passes.rotate.galois import jacobsthal, prime_power
from graphpress.passes.rotate.quadruples import ORDERS, quadruple


@functools.cache
def exists(order: int) -> bool:
    """Whether ``hadamard(order)`` gives a matrix."""
    return _recipe(order) is not None


@functools.cache
def hadamard(order: int) -> np.ndarray:
    """A Hadamard matrix [order, order] of +-1 (float64, not to be written to).

    Raises:
        BadRequest: None is known here; names the nearest orders that are. An order below 1.
    """
    if order < 1:
        raise BadRequest(f"the order of a Hadamard matrix is at least 1, not {order}", where="rotation")
    recipe = _recipe(order)
    if recipe is None:
        raise BadRequest(f"no Hadamard matrix of order {order} is known here", where="rotation", fix=_nearest(order))
    kind, factor = recipe
    if kind == "kronecker":
        return _frozen(np.kron(hadamard(factor), hadamard(order // factor)))
    made = {"sylvester": sylvester, "paley I": _paley_one, "paley II": _paley_two, "circulants": _goethals_seidel}
    return _frozen(made[kind](order))


def order_factors(order: int) -> tuple[int, int]:
    """(a, b) with a b = order, both known orders, a + b least and a <= b: what an online rotation is made of.

    Raises:
        BadRequest: The order is not known.
    """
    pairs = [(a, order // a) for a in range(1, math.isqrt(order) + 1) if order % a == 0]
    known = [pair for pair in pairs if exists(pair[0]) and exists(pair[1])]
    if not known:
        hadamard(order)  # raises
    return min(known, key=sum)


def largest_order(size: int) -> int:
    """The largest known order that divides ``size``: the block of a block Hadamard matrix."""
    return max(d for d in range(1, size + 1) if size % d == 0 and exists(d))


@functools.cache
def _recipe(order: int) -> tuple[str, int] | None:
    """How to build the matrix; a Kronecker product with its left factor."""
    if order < 1:
        return None
    if order & (order - 1) == 0:
        return "sylvester", order
    if order % 4:
        return None
    if prime_power(order - 1) and (order - 1) % 4 == 3:
        return "paley I", order
    half = order // 2 - 1
    if prime_power(half) and half % 4 == 1:
        return "paley II", order
    divisors = (d for d in range(2, order) if order % d == 0)
    if order in ORDERS:
        return "circulants", order
    left = next((d for d in divisors if _recipe(d) is not None and _recipe(order // d) is not None), None)
    return None if left is None else ("kronecker", left)


def _paley_one(order: int) -> np.ndarray:
    """I + S with S = [[0, 1], [-1, J]], for q = order - 1 = 3 mod 4."""
    skew = np.zeros((order, order))
    skew[0, 1:], skew[1:, 0] = 1, -1
    skew[1:, 1:] = jacobsthal(order - 1)
    return np.eye(order) + skew


def _paley_two(order: int) -> np.ndarray:
    """S x [[1, 1], [1, -1]] + I x [[1, -1], [-1, -1]] with S = [[0, 1], [1, J]], for q = order / 2 - 1 = 1 mod 4."""
    n = order // 2
    symmetric = np.zeros((n, n))
    symmetric[0, 1:] = symmetric[1:, 0] = 1
    symmetric[1:, 1:] = jacobsthal(n - 1)
    return np.kron(symmetric, [[1, 1], [1, -1]]) + np.kron(np.eye(n), [[1, -1], [-1, -1]])


def _goethals_seidel(order: int) -> np.ndarray:
    """Of circulants A, B, C, D with A A^T + B B^T + C C^T + D D^T = order I, and R, which turns columns round."""
    n = order // 4
    shifts = (np.arange(n)[None, :] - np.arange(n)[:, None]) % n
    a, b, c, d = (row[shifts] for row in quadruple(n))
    rb, rc, rd = (x[:, ::-1] for x in (b, c, d))
    tb, tc, td = (x.T[:, ::-1] for x in (b, c, d))
    return np.block([[a, rb, rc, rd], [-rb, a, td, -tc], [-rc, -td, a, tb], [-rd, tc, -tb, a]])


def _frozen(matrix: np.ndarray) -> np.ndarray:
    matrix.setflags(write=False)
    return matrix


def _nearest(order: int) -> str:
    below, above = (next(n for n in itertools.count(order, step) if exists(n)) for step in (-1, 1))
    return f"The nearest orders are {below} and {above}; kind: block takes blocks of {largest_order(order)}."
