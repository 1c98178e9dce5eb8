"""NVFP4: e2m1 in blocks, of 16 there, with a scale in e4m3 each and one float32 for the tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphpress.arrays import array_namespace
from graphpress.passes.quantizers.block_floats import BlockFloats
from graphpress.passes.quantizers.float8 import rounded_to
from graphpress.passes.quantizers.mxfp4 import E2M1
from graphpress.passes.quantizers.quantizer import Array

_LARGEST, _SMALLEST = 448.0, 2.0**-9  # of e4m3


@dataclass(frozen=True)
class Nvfp4(BlockFloats):
    """4-bit floats with scales of two levels: the largest block has the largest scale of e4m3."""

    name: ClassVar[str] = "nvfp4"
    dtype: ClassVar[str] = "int4"
    scale_dtype: ClassVar[str] = "float8e4m3fn"
    positive: ClassVar[tuple[float, ...]] = E2M1

    def outermost(self, reach: Array) -> Array:
        xp = array_namespace(reach)
        return xp.clip(xp.where(reach > 0, reach, xp.ones_like(reach)), min=2.0**-100) / _LARGEST

    def inner(self, reach: Array, outer: Array) -> Array:
        xp = array_namespace(reach)
        return rounded_to(xp.clip(reach / outer, _SMALLEST, _LARGEST), self.scale_dtype)


QUANTIZER = Nvfp4
