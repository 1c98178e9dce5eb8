"""Two binary numbers with a scale each (FDB, flexible dual binarization: DB-LLM, arXiv:2402.11960): 2-bit weights.

``w = a1 b1 + a2 b2`` with bits ``b1 = H(w - (a1 + a2) / 2)`` and ``b2 = H(-(w - a1 b1 - a2 / 2))``: the nearest of the
levels ``a2 < 0 < a1 + a2 < a1``. They begin as ``2s`` and ``-s``, which is rounding to {-1, 0, 1, 2} s; learned apart
(``learn-format``), the levels are evenly spaced no more. A product is two masked sums: ``y = a1 (b1 x) + a2 (b2 x)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from graphpress.arrays import array_namespace, device
from graphpress.passes.quantizers.affine import dot
from graphpress.passes.quantizers.quantizer import Array, QParams
from graphpress.passes.quantizers.row_ranges import extremes, least_error
from graphpress.passes.quantizers.two_terms import SMALLEST, TwoTerms, books
from graphpress.types import Scheme

_FIRST = (0.0, 0.0, 1.0, 1.0)  # of codes from the lowest on, so that levels ascend
_SECOND = (1.0, 0.0, 1.0, 0.0)
_MARGIN = 2.0**-10  # of the first scale: how near to 0 and to minus it the second may come


@dataclass(frozen=True)
class DualBinary(TwoTerms):
    """Two bits, each with a scale of its own. 0 is kept.

    Observers: ``minmax`` brings both extremes of a group within half a step of a level, ``mse`` shrinks that by the
    ratio of least squared error.
    """

    name: ClassVar[str] = "fdb"

    def refusal(self, scheme: Scheme) -> str | None:
        if scheme.dtype != "int2":
            return f"codes are int2, not {scheme.dtype}"
        return None if scheme.symmetric else "it has no zero point"

    def fit_rows(self, rows: Array, scheme: Scheme, costs: Array | None, tables: Mapping[str, Array]) -> QParams:
        tables = tables or books(_FIRST, _SECOND, scheme, rows)
        lo, hi = extremes(rows)
        if scheme.observer == "mse":
            lo, hi = least_error(rows, lambda part, a, b, c: self._error(part, a, b, c, tables, scheme), costs)
        return _begun(lo, hi, tables)

    def following(self, params: QParams, scheme: Scheme) -> QParams:
        """The second scale kept between minus the first and 0: levels stay in order."""
        xp, scale = array_namespace(params.scale), params.scale
        second = xp.minimum(xp.maximum(params.beside["second"], -(1 - _MARGIN) * scale), -_MARGIN * scale)
        return replace(params, beside={"second": second})

    def _error(
        self, rows: Array, lo: Array, hi: Array, costs: Array | None, tables: Mapping[str, Array], scheme: Scheme
    ) -> Array:
        params = _begun(lo, hi, tables).mapped(lambda p: p[:, None])
        off = self.nearest(rows, params, scheme) - rows
        return dot(off if costs is None else off * costs, off)


QUANTIZER = DualBinary


def _begun(lo: Array, hi: Array, tables: Mapping[str, Array]) -> QParams:
    """Scales ``2s`` and ``-s``, with {-1, 0, 1, 2} s half a step from both ends at most."""
    xp = array_namespace(lo)
    step = xp.astype(xp.maximum(-lo / 1.5, hi / 2.5), xp.float32)
    step = xp.where(step > 0, xp.clip(step, min=SMALLEST), xp.ones_like(step))
    zero = xp.zeros(step.shape, dtype=xp.int8, device=device(step))
    return QParams(2 * step, zero, tables, {"second": -step})
