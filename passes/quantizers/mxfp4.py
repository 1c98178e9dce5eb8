"""MXFP4 (OCP Microscaling Formats 1.0): e2m1 in blocks, of 32 there, with a power of two each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphpress.arrays import array_namespace
from graphpress.passes.quantizers.block_floats import BlockFloats
from graphpress.passes.quantizers.quantizer import Array

E2M1 = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_TOP, _OCTAVES = 15, 30  # powers of two that e5m2 has: up to 2^15, and these below


@dataclass(frozen=True)
class Mxfp4(BlockFloats):
    """4-bit floats whose blocks have powers of two: 2^floor(log2 of the largest, less that of the largest float).

    What lies beyond the largest float of a block saturates; ``mse`` may take another power.
    """

    name: ClassVar[str] = "mxfp4"
    dtype: ClassVar[str] = "int4"
    scale_dtype: ClassVar[str] = "float8e5m2"
    positive: ClassVar[tuple[float, ...]] = E2M1
    headroom: ClassVar[float] = 2.0

    def outermost(self, reach: Array) -> Array:
        return 2.0**-_TOP * self._power(reach)

    def inner(self, reach: Array, outer: Array) -> Array:
        xp = array_namespace(reach)
        return xp.clip(self._power(reach) / outer, 2.0 ** (_TOP - _OCTAVES), 2.0**_TOP)

    def _power(self, reach: Array) -> Array:
        """The power of two of the standard, for the unit in which the largest float is reached; 1 for 0."""
        xp = array_namespace(reach)
        largest = self.positive[-1]
        shift = 2 ** int(xp.floor(xp.log2(xp.asarray(largest))))
        size = xp.where(reach > 0, reach * largest / shift, xp.ones_like(reach))
        return xp.astype(xp.exp2(xp.floor(xp.log2(xp.clip(size, min=2.0**-100)))), xp.float32)


QUANTIZER = Mxfp4
