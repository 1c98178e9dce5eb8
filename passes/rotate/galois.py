"""Finite fields of q = p^k elements, as small as Paley's matrices need them."""

from __future__ import annotations

import itertools

import numpy as np


def prime_power(q: int) -> tuple[int, int] | None:
    """(p, k) with q = p^k and p prime, or None."""
    if q < 2:
        return None
    p = next((d for d in range(2, int(q**0.5) + 1) if q % d == 0), q)
    k, rest = 0, q
    while rest % p == 0:
        rest, k = rest // p, k + 1
    return (p, k) if rest == 1 else None


def jacobsthal(q: int) -> np.ndarray:
    """[q, q] of chi(a - b) over the elements of GF(q), chi the quadratic character; q an odd prime power."""
    found = prime_power(q)
    assert found is not None and q % 2, "Paley's matrices need an odd prime power"
    p, k = found
    elements = np.array(list(itertools.product(range(p), repeat=k)), np.int64)  # coefficients, highest first
    index = p ** np.arange(k - 1, -1, -1)
    squares = {int(_times(e, e, _modulus(p, k), p) @ index) for e in elements[1:]}
    character = np.array([0, *(1.0 if i in squares else -1.0 for i in range(1, q))])
    differences = (elements[:, None, :] - elements[None, :, :]) % p
    return np.asarray(character[differences @ index])


def _times(a: np.ndarray, b: np.ndarray, modulus: np.ndarray, p: int) -> np.ndarray:
    """The product of two polynomials of degree < k, modulo a monic one of degree k."""
    product, k = np.convolve(a, b) % p, len(a)
    for i in range(k - 1):
        product[i : i + k + 1] = (product[i : i + k + 1] - product[i] * modulus) % p
    return np.asarray(product[k - 1 :])


def _modulus(p: int, k: int) -> np.ndarray:
    """A monic polynomial of degree k that has no factor over GF(p), highest coefficient first."""
    for tail in itertools.product(range(p), repeat=k):
        candidate = np.array([1, *tail], np.int64)
        if not any(_divides(np.array([1, *f], np.int64), candidate, p) for f in _smaller(p, k)):
            return candidate
    raise AssertionError("there is one for every p and k")


def _smaller(p: int, k: int) -> list[tuple[int, ...]]:
    return [f for degree in range(1, k // 2 + 1) for f in itertools.product(range(p), repeat=degree)]


def _divides(f: np.ndarray, g: np.ndarray, p: int) -> bool:
    rest = g.copy()
    for i in range(len(g) - len(f) + 1):
        rest[i : i + len(f)] = (rest[i : i + len(f)] - rest[i] * f) % p
    return not rest.any()
