"""Levels spaced by a power (PowerQuant, arXiv:2301.09858; NUPES, arXiv:2308.05600): dense near zero, wide at the ends.

A code is the rounded power of a number, ``q = round(sign(x) (|x| / max|x|)^a (2^(bits-1) - 1))``. Powers are the only
continuous maps that turn products into products, so operands may be multiplied before they are mapped back, but never
summed. With a = 1/2 a code stands for its signed square: in 4 bits ``0, 1, 4, ... 49``, so products are those of int8;
with other exponents a table of as few levels holds 8-bit integers too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from graphpress.arrays import array_namespace
from graphpress.errors import BadRequest
from graphpress.passes.quantizers.codebook import Codebook, tables_of
from graphpress.passes.quantizers.quantizer import Array
from graphpress.passes.quantizers.row_ranges import extremes
from graphpress.types import Scheme

RANGE = (0.2, 1.0)  # of exponents: below, the levels next to zero lie at zero in float16
_SAMPLE = 1 << 18  # elements that the search looks at
_TOP = 63.0  # the highest level as an integer: two products with 8-bit codes add up to less than 2^15
_INT8 = 4  # bits up to which levels are 8-bit integers


@dataclass(frozen=True)
class Power(Codebook):
    """Levels spaced by a power.

    Attributes:
        exponent: Of the codes: 1 spaces them evenly, less spends them near zero. Up to 4 bits int8 kernels compute.
            ``search``: for each tensor the one of least squared error at full range, by Nelder-Mead, without data.
    """

    name: ClassVar[str] = "power"
    exponent: float | Literal["search"] = 0.5

    def __post_init__(self) -> None:
        if self.exponent != "search" and not RANGE[0] <= self.exponent <= RANGE[1]:
            what = f"{self.exponent} is not from {RANGE[0]} to {RANGE[1]}"
            raise BadRequest(what, where="power: option 'exponent'")

    def refusal(self, scheme: Scheme) -> str | None:
        return super().refusal(scheme) or (None if scheme.signed else f"codes have a sign, {scheme.dtype} has none")

    def in_kernel(self, scheme: Scheme) -> Scheme | None:
        return replace(scheme, dtype="int8", quantizer="affine") if scheme.bits <= _INT8 else None

    def levels(self, rows: Array, scheme: Scheme, costs: Array | None) -> tuple[np.ndarray, np.ndarray]:
        exponent = self._searched(rows, scheme, costs) if self.exponent == "search" else self.exponent
        return levels(exponent, scheme)

    def _searched(self, rows: Array, scheme: Scheme, costs: Array | None) -> float:
        from scipy.optimize import minimize

        xp, (lo, hi) = array_namespace(rows), extremes(rows)
        some = slice(None, None, max(1, rows.shape[0] * rows.shape[1] // _SAMPLE))
        seen, weights = rows[:, some], None if costs is None else costs[:, some]

        def lost(exponent: np.ndarray) -> float:
            made = tables_of(*levels(float(exponent[0]), scheme), scheme, seen)
            return float(xp.sum(self.error(seen, lo, hi, weights, made, scheme)))

        start = np.array([[0.5], [0.75]])
        tolerance = {"xatol": 1e-3, "fatol": 1e-4 * lost(start[0]), "initial_simplex": start}
        return float(minimize(lost, start[0], method="Nelder-Mead", bounds=[RANGE], options=tolerance).x[0])


QUANTIZER = Power


def power(x: np.ndarray, exponent: float) -> np.ndarray:
    """sign(x) |x|^exponent; with 1 / exponent its own inverse."""
    return np.sign(x) * np.abs(x) ** exponent


def levels(exponent: float, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """(levels of the codes, bounds between them) of a scheme; with few bits levels are 8-bit integers.

    Those are the squares themselves for 1/2, and else the nearest ones with the highest code at 63, no two the same:
    that moves a level by at most 1/126 of the range, less than levels are apart, and pairs of products fit 16 bits.
    """
    codes, squares = np.arange(scheme.qmin, scheme.qmax + 1), exponent == 0.5
    unit, top = (1.0, 1.0) if squares else (float(scheme.qmax), 1.0 if scheme.bits > _INT8 else _TOP)
    numbers, bounds = (top * power(q / unit, 1 / exponent) for q in (codes, codes[:-1] + 0.5))
    if squares or scheme.bits > _INT8:
        return numbers, bounds
    numbers = np.clip(np.sign(codes) * np.maximum(np.rint(np.abs(numbers)), np.abs(codes)), -_TOP - 1, _TOP)
    inside = (bounds > numbers[:-1]) & (bounds < numbers[1:])
    return numbers, np.where(inside, bounds, (numbers[:-1] + numbers[1:]) / 2)
