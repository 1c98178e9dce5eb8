"""One array in an .npy file, mapped: its header first, its pages when they are touched, nothing unpickled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np

from graphpress.errors import CalibrationError

BROKEN = (OSError, ValueError, EOFError, SyntaxError)  # what numpy makes of bytes that are no array


@dataclass(frozen=True)
class Header:
    """Shape and element type of an array that was not read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool = False
    offset: int = 0  # bytes in front of the first element

    @property
    def nbytes(self) -> int:
        size = self.dtype.itemsize
        for n in self.shape:
            size *= n
        return size


def header(f: IO[bytes], size: int, where: str) -> Header:
    """The header of an array in the .npy format.

    Args:
        f: Stands at its first byte.
        size: Bytes that there are.
        where: Comes first in a message.

    Raises:
        CalibrationError: It holds Python objects, or its shape does not fit its bytes.
    """
    version = np.lib.format.read_magic(f)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(f)
    found = Header(tuple(int(n) for n in shape), dtype, fortran, f.tell())
    if dtype.hasobject or dtype.names:
        raise CalibrationError(f"holds {dtype}, not numbers", where=where, fix="Save a plain numeric array.")
    fits(found, size - found.offset, where)
    return found


def fits(found: Header, held: int, where: str) -> None:
    """Refuse a header that claims other bytes than there are.

    Raises:
        CalibrationError: It does.
    """
    if min(found.shape, default=0) < 0 or found.nbytes != held:
        said = f"claims shape {found.shape} of {found.dtype} ({found.nbytes} bytes)"
        raise CalibrationError(f"{said} and holds {held} bytes", where=where, fix="Save the file again.")


def mapped(path: Path, found: Header, start: int = 0) -> np.ndarray:
    """The array whose header was read ``start`` bytes into a file; its pages are read when touched."""
    order: Literal["F", "C"] = "F" if found.fortran else "C"
    return np.memmap(path, found.dtype, "r", start + found.offset, found.shape, order)


def headers(path: Path) -> Header:
    """The header of an .npy file.

    Raises:
        CalibrationError: Not an .npy file, or one whose header does not fit its bytes, or of Python objects.
    """
    try:
        with path.open("rb") as f:
            return header(f, path.stat().st_size, str(path))
    except BROKEN as e:
        raise unreadable(path, e, ".npy", "Write it with numpy.save(path, array).") from e


def read(path: Path) -> np.ndarray:
    """The array of an .npy file, mapped.

    Raises:
        CalibrationError: As for ``headers``.
    """
    found = headers(path)
    return mapped(path, found) if found.nbytes else np.zeros(found.shape, found.dtype)


def unreadable(path: Path, error: Exception, kind: str, fix: str) -> CalibrationError:
    """What is said of a file that cannot be read."""
    if isinstance(error, FileNotFoundError):
        return CalibrationError("there is no such file", where=str(path))
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return CalibrationError(f"not a readable {kind} file: {reason}", where=str(path), fix=fix)
