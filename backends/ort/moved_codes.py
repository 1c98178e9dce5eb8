"""Weights moved from int8 to uint8, zero points with them, where a machine's products of u8 x s8 are not exact.

On x86 without VNNI two neighbouring products are added in 16 bits and saturate there: with random codes of 8 bits a
third of a convolution's outputs were wrong. Products of u8 x u8 are exact on the same machine, and of the same speed
(AMD EPYC with AVX2, ONNX Runtime 1.32, one thread; microseconds, u8 x s8 and u8 x u8): MatMul 256 x 512 x 512 1041 and
1319, Conv 3x3 of 64 channels on 28 x 28 527 and 536, 1x1 65 and 86. The numbers are the same, so nothing is narrowed.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphpress.backends.canonical import Weight
from graphpress.keys import STORED
from graphpress.target import Fact, Target

SHIFT = 128


def overflows(w: Weight, target: Target) -> bool:
    """Whether products of 8-bit codes with these could saturate on the target's machine."""
    limit = target.exact_codes
    if limit is None or w.dtype != ir.DataType.INT8:
        return False
    return bool(np.abs(w.codes.astype(np.int16)).max(initial=0) > limit)


def moved(codes: np.ndarray) -> np.ndarray:
    """Codes or zero points of int8 as uint8: 128 more."""
    return (codes.astype(np.int16) + SHIFT).astype(np.uint8)


def narrowed(
    codes: np.ndarray, zero: np.ndarray, scale: np.ndarray, axis: int | None, limit: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes of at most ``limit`` without zero points, and their scales: about one bit less."""
    each = [-1 if i == axis else 1 for i in range(codes.ndim)] if axis is not None else []
    centred = codes.astype(np.int16) - zero.reshape(each)
    factor = np.abs(centred).max() / limit
    return np.rint(centred / factor).astype(np.int8), (scale * factor).astype(np.float32)


def note(site: ir.Node, target: Target) -> None:
    """Note on a site how its weights are stored instead; the audit says so."""
    exact = Fact.MULTIPLIES_UNSIGNED_EXACTLY in target.facts
    site.metadata_props[STORED] = "unsigned" if exact else "in 7 bits"


def noted(site: ir.Node) -> str:
    """What the audit says of it; "" where nothing was changed."""
    how = site.metadata_props.get(STORED, "")
    return f"weights stored {how}, for products of u8 and s8 saturate on this machine" if how else ""
