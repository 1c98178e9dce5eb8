"""Formats whose codes stand for the sum of two numbers, each with a scale of its own: an offset, two binary numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphpress.arrays import array_namespace, device
from graphpress.ops.lookup_quantize import BOUNDS
from graphpress.ops.sum_lookup_dequantize import OP as DECODE
from graphpress.ops.sum_lookup_quantize import OP as ENCODE
from graphpress.ops.sum_lookup_quantize import search_terms
from graphpress.passes.quantizers.quantizer import Array, Form, QParams, Quantizer
from graphpress.types import Scheme, Storage

_NARROW = 4  # bits below which an encoding node gives wider codes
SMALLEST = float(np.finfo(np.float32).tiny) * 2**24  # of scales


@dataclass(frozen=True)
class TwoTerms(Quantizer):
    """A number is ``book[code] * scale + second_book[code] * second``; the nearest one is taken."""

    encode: ClassVar[Form] = Form("SumLookupQuantize", ("scale", "second", "bounds", "second_bounds"), ENCODE)
    decode: ClassVar[Form] = Form("SumLookupDequantize", ("scale", "second", "book", "second_book"), DECODE)
    beside: ClassVar[tuple[str, ...]] = ("second",)

    def in_kernel(self, scheme: Scheme) -> Scheme | None:
        return None

    def attributes(self, form: Form, scheme: Scheme) -> dict[str, Any]:
        lowest = {"lowest": Storage.of(scheme.storage).low}
        if form is self.decode:
            return lowest
        kind = scheme.ir_dtype
        wide = (
            {"dtype": ir.DataType.INT8.value, "stored": kind.value}
            if kind.bitwidth < _NARROW
            else {"dtype": kind.value}
        )
        return lowest | wide

    def table_bits(self, scheme: Scheme) -> int:
        return 2 * 32 << Storage.of(scheme.dtype).stored_bits

    def codes(self, x: Array, params: QParams, scheme: Scheme) -> Array:
        xp, kind, tables = array_namespace(x), Storage.of(scheme.storage), params.tables
        wide, scale, second = xp.astype(x, xp.float32), params.scale, params.beside["second"]
        found = search_terms(wide, scale, second, tables["bounds"], tables["second_bounds"], kind.bits)
        return xp.astype(found + kind.low, xp.float32)

    def values(self, codes: Array, params: QParams, scheme: Scheme) -> Array:
        xp = array_namespace(params.scale)
        index = xp.astype(codes, xp.int64) - Storage.of(scheme.storage).low
        return (
            params.tables["book"][index] * params.scale + params.tables["second_book"][index] * params.beside["second"]
        )

    def learnable(self, scheme: Scheme) -> tuple[str, ...]:
        return "scale", "second"

    def following(self, params: QParams, scheme: Scheme) -> QParams:
        tables = {**params.tables, "book": array_namespace(params.scale).sort(params.tables["book"])}
        return replace(params, tables=tables | bounds_of(tables, scheme))


def books(first: Array, second: Array, scheme: Scheme, like: Array) -> dict[str, Array]:
    """The tables of numbers for the codes from ``qmin`` to ``qmax``, as the library and device of ``like`` has them."""
    xp, kind = array_namespace(like), Storage.of(scheme.storage)
    outer = scheme.qmin - kind.low, kind.high - scheme.qmax
    padded = (np.pad(np.asarray(t, np.float32), outer, mode="edge") for t in (first, second))
    tables = {n: xp.asarray(t, device=device(like)) for n, t in zip(("book", "second_book"), padded, strict=True)}
    return tables | bounds_of(tables, scheme)


def bounds_of(tables: Mapping[str, Array], scheme: Scheme) -> dict[str, Array]:
    """What lies midway between the numbers of neighbouring codes of a scheme; infinite beyond them."""
    xp, kind = array_namespace(tables["book"]), Storage.of(scheme.storage)
    below, count = scheme.qmin - kind.low, scheme.qmax - scheme.qmin
    found = {}
    for bound, book in (("bounds", "book"), ("second_bounds", "second_book")):
        levels = tables[book][below : below + count + 1]
        made = xp.zeros((BOUNDS,), dtype=levels.dtype, device=device(levels))
        if bound == "bounds":
            made[:below], made[below + count :] = -np.inf, np.inf
        made[below : below + count] = (levels[:-1] + levels[1:]) / 2
        found[bound] = made
    return found
