"""Levels spaced by a power (PowerQuant, arXiv:2301.09858; NUPES, arXiv:2308.05600): dense near zero, wide at the ends.

A code is the rounded power of a number, ``q = round(sign(x) (|x| / max|x|)^a (2^(bits-1) - 1))``. Powers are the only
continuous maps that turn products into products, so operands may be multiplied before they are mapped back, but never
summed. With a = 1/2 a code stands for its signed square: in 4 bits ``0, 1, 4, ... 49``, so products are those of int8.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from array_api_compat import array_namespace

from graphpress.errors import BadRequest
from graphpress.passes.quantizers.codebook import Codebook, tables_of
from graphpress.passes.quantizers.quantizer import Array
from graphpress.passes.quantizers.row_ranges import extremes
from graphpress.types import Scheme

_RANGE = (0.2, 1.0)  # of exponents: below, the levels next to zero lie at zero in float16
_SAMPLE = 1 << 18  # elements that the search looks at
_INT8 = 4  # bits up to which squares are 8-bit integers


@dataclass(frozen=True)
class Power(Codebook):
    """Levels spaced by a power.

    Attributes:
        exponent: Of the codes: 1 spaces them evenly, less spends them near zero. 0.5 runs on int8 kernels up to 4 bits.
            ``search``: for each tensor the one of least squared error at full range, by Nelder-Mead, without data.
    """

    name: ClassVar[str] = "power"
    exponent: float | Literal["search"] = 0.5

    def __post_init__(self) -> None:
        if self.exponent != "search" and not _RANGE[0] <= self.exponent <= _RANGE[1]:
            what = f"{self.exponent} is not from {_RANGE[0]} to {_RANGE[1]}"
            raise BadRequest(what, where="power: option 'exponent'")

    def refusal(self, scheme: Scheme) -> str | None:
        return super().refusal(scheme) or (None if scheme.signed else f"codes have a sign, {scheme.dtype} has none")

    def in_kernel(self, scheme: Scheme) -> Scheme | None:
        squares = self.exponent == 0.5 and scheme.bits <= _INT8
        return replace(scheme, dtype="int8", quantizer="affine") if squares else None

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
        return float(minimize(lost, start[0], method="Nelder-Mead", bounds=[_RANGE], options=tolerance).x[0])


QUANTIZER = Power


def power(x: np.ndarray, exponent: float) -> np.ndarray:
    """sign(x) |x|^exponent; with 1 / exponent its own inverse."""
    return np.sign(x) * np.abs(x) ** exponent


def levels(exponent: float, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """(levels of the codes, bounds between them) of a scheme: squares for 1/2, else with the highest code at 1."""
    codes, unit = np.arange(scheme.qmin, scheme.qmax + 1), 1.0 if exponent == 0.5 else float(scheme.qmax)
    return power(codes / unit, 1 / exponent), power((codes[:-1] + 0.5) / unit, 1 / exponent)
