"""Arrays in .npz files, read with bounded memory: headers first, uncompressed members mapped, nothing unpickled."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from graphpress.errors import CalibrationError
from graphpress.observe import npy
from graphpress.observe.npy import Header

_LOCAL_HEADER = 30  # bytes of a zip member's fixed local header; the lengths of name and extra field stand at 26
_BROKEN = (*npy.BROKEN, KeyError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error, struct.error)


def headers(path: Path) -> dict[str, Header]:
    """Name -> header of every array of the file; no element is read.

    Raises:
        CalibrationError: Not an .npz file, or an array whose header does not fit its bytes, or of Python objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {_key(m): _header(archive, m, path) for m in archive.infolist()}
    except _BROKEN as e:
        raise _unreadable(path, e) from e


def read(path: Path) -> dict[str, np.ndarray]:
    """All arrays of the file. Those stored without compression are mapped: their pages are read when touched.

    Raises:
        CalibrationError: As for ``headers``, and for compressed data that would not fit into memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {_key(m): _array(archive, m, path) for m in archive.infolist()}
    except _BROKEN as e:
        raise _unreadable(path, e) from e


def save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an uncompressed .npz; the file appears complete or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as f:
            np.savez(f, allow_pickle=False, **arrays)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _key(member: zipfile.ZipInfo) -> str:
    return member.filename.removesuffix(".npy")


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> Header:
    with archive.open(member) as f:
        return npy.header(f, member.file_size, f"{path} array {_key(member)!r}")


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> np.ndarray:
    header = _header(archive, member, path)
    if member.compress_type == zipfile.ZIP_STORED and header.nbytes:
        return npy.mapped(path, header, _start(path, member))
    if header.nbytes > _memory() // 2:
        gib = header.nbytes / 2**30
        raise CalibrationError(
            f"is {gib:.1f} GiB when decompressed, over half of this machine's memory",
            where=f"{path} array {_key(member)!r}", fix="Save it with numpy.savez, which can be read piece by piece.",
        )  # fmt: skip
    with archive.open(member) as f:
        f.read(header.offset)
        data = f.read(header.nbytes)
        f.read(1)  # at the end of the member its checksum is verified
    order: Literal["F", "C"] = "F" if header.fortran else "C"
    return np.frombuffer(data, header.dtype).reshape(header.shape, order=order)


def _start(path: Path, member: zipfile.ZipInfo) -> int:
    """Where the member's bytes begin: the lengths in its local header may differ from those in the directory."""
    with path.open("rb") as f:
        f.seek(member.header_offset)
        fixed = f.read(_LOCAL_HEADER)
    name, extra = struct.unpack_from("<HH", fixed, 26)
    start = member.header_offset + _LOCAL_HEADER + name + extra
    if start + member.file_size > path.stat().st_size:
        raise zipfile.BadZipFile(f"the file ends inside {member.filename}")
    return int(start)


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _unreadable(path: Path, error: Exception) -> CalibrationError:
    return npy.unreadable(path, error, ".npz", "Write it with numpy.savez(path, name=array).")
