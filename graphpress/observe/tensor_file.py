"""Arrays in .safetensors files, mapped: https://huggingface.co/docs/safetensors (8 bytes of length, JSON, bytes)."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from graphpress.errors import CalibrationError
from graphpress.observe import npy
from graphpress.observe.npy import Header

_MOST = 100 << 20  # bytes of a header, as the format's own reader allows
_TYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype("?"), "U8": np.dtype("u1"), "I8": np.dtype("i1"), "U16": np.dtype("<u2"), "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"), "I32": np.dtype("<i4"), "U64": np.dtype("<u8"), "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "BF16": np.dtype(ml_dtypes.bfloat16),
}  # fmt: skip


def headers(path: Path) -> dict[str, Header]:
    """Name -> header of every array of the file; no element is read.

    Raises:
        CalibrationError: Not a .safetensors file, an element type that numpy lacks, or a header that does not fit.
    """
    fix = "Write it with safetensors.numpy.save_file({name: array}, path)."
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            if length > min(_MOST, size - 8):
                raise ValueError(f"its header claims {length} bytes")
            told: dict[str, Any] = json.loads(f.read(length))
        told.pop("__metadata__", None)
        return {name: _header(entry, 8 + length, size, f"{path}, array {name!r}") for name, entry in told.items()}
    except (*npy.BROKEN, struct.error, KeyError, TypeError, AttributeError) as e:
        raise npy.unreadable(path, e, ".safetensors", fix) from e


def read(path: Path) -> dict[str, np.ndarray]:
    """All arrays of the file, mapped.

    Raises:
        CalibrationError: As for ``headers``.
    """
    return {
        name: npy.mapped(path, found) if found.nbytes else np.zeros(found.shape, found.dtype)
        for name, found in headers(path).items()
    }


def _header(entry: dict[str, Any], start: int, size: int, where: str) -> Header:
    if entry["dtype"] not in _TYPES:
        raise CalibrationError(f"is of type {entry['dtype']}", where=where, fix=f"Known: {', '.join(_TYPES)}.")
    begin, end = map(int, entry["data_offsets"])
    found = Header(tuple(int(n) for n in entry["shape"]), _TYPES[entry["dtype"]], offset=start + begin)
    npy.fits(found, min(end, size - start) - begin, where)
    return found
