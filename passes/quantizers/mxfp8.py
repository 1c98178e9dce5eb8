"""MXFP8 (OCP Microscaling Formats 1.0): e4m3 in blocks, of 32 there, with a power of two each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphpress.passes.quantizers.float8 import Float8
from graphpress.passes.quantizers.mxfp4 import Mxfp4
from graphpress.types import Scheme

_ALL = Float8.every_code(Scheme("float8e4m3fn"))


@dataclass(frozen=True)
class Mxfp8(Mxfp4):
    """8-bit floats whose blocks have powers of two; as ``mxfp4``."""

    name: ClassVar[str] = "mxfp8"
    dtype: ClassVar[str] = "int8"
    positive: ClassVar[tuple[float, ...]] = tuple(_ALL[_ALL > 0].tolist())


QUANTIZER = Mxfp8
