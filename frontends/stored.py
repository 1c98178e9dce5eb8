"""Tensors whose bytes stay in a file: resolved safely, memory-mapped, read piece by piece."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from graphpress.errors import BadRequest, InvalidModel
from graphpress.frontends import wire

SMALL = 16 << 20  # bytes up to which a file is simply read: what is in memory cannot change under us
CHUNK = 4 << 20  # bytes touched at a time when a tensor is passed through


def read(path: Path) -> memoryview:
    """The bytes of a file, memory-mapped where it is big.

    Raises:
        OSError: It cannot be read, or is not a regular file.
    """
    if path.exists() and not path.is_file():  # opening a pipe waits for somebody to write into it
        raise OSError("not a regular file")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return memoryview(file.read() if size <= SMALL else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


class StoredTensor(ir.LazyTensor):
    """A tensor over bytes in a file. It stays valid when the file is replaced, since the old one stays open.

    Its arrays are read-only: views of the file, or copies where the elements lie unaligned or packed in it.
    """

    def __init__(self, file: memoryview, offset: int, like: ir.ExternalTensor) -> None:
        props = dict(like.metadata_props) or None
        super().__init__(
            self._evaluated, like.dtype, like.shape, name=like.name, doc_string=like.doc_string, metadata_props=props
        )
        self._file = file.obj
        self._offset = offset
        self._bytes = file[offset : offset + self.nbytes]

    def _evaluated(self) -> ir.TensorProtocol:
        if self.dtype.bitwidth < 8:
            packed = np.frombuffer(self._bytes, np.uint8)
            return ir.PackedTensor(packed, self.dtype, shape=self.shape)
        array = _aligned(np.frombuffer(self._bytes, self._little)).reshape(self.shape.numpy())
        return ir.Tensor(array, self.dtype, shape=self.shape)

    def tobytes(self) -> bytes:
        return self._bytes.tobytes()

    def tofile(self, file: BinaryIO) -> None:
        """Copy the bytes in chunks; pages already copied do not stay in memory."""
        for start in range(0, self.nbytes, CHUNK):
            file.write(self._bytes[start : start + CHUNK])
            self._forget(start)

    def pieces(self) -> Iterator[np.ndarray]:
        """The elements in flat arrays of at most ``CHUNK`` bytes, each to be dropped before the next."""
        if self.dtype.bitwidth < 8:
            yield self.numpy().ravel()
            return
        for start in range(0, self.nbytes, CHUNK):
            yield _aligned(np.frombuffer(self._bytes[start : start + CHUNK], self._little))
            self._forget(start)

    @property
    def _little(self) -> np.dtype:
        return np.dtype(self.dtype.numpy()).newbyteorder("<")

    def _forget(self, start: int) -> None:
        """Give the pages of the chunk at ``start`` back to the system; a later read fetches them anew."""
        if isinstance(self._file, mmap.mmap):
            begin = (self._offset + start) // mmap.PAGESIZE * mmap.PAGESIZE
            self._file.madvise(mmap.MADV_DONTNEED, begin, min(CHUNK + mmap.PAGESIZE, len(self._file) - begin))


def _aligned(array: np.ndarray) -> np.ndarray:
    if not array.flags.aligned:
        array = array.copy()
        array.flags.writeable = False
    return array


class Store:
    """The model file and the external data files beside it, each opened once.

    Args:
        model: Bytes of the model file.
        folder: Its folder, which no external data may lie outside of.
    """

    def __init__(self, model: memoryview, folder: Path) -> None:
        self._folder = folder
        self._open = {wire.INSIDE: model}

    def tensor(self, reference: ir.ExternalTensor) -> StoredTensor:
        """The tensor that ``reference`` stands for.

        Raises:
            InvalidModel: The file is missing, too short, outside the folder, or not as long as the shape says.
        """
        location = str(reference.location)
        data = self._file(location)
        want, offset = reference.nbytes, reference.offset or 0
        length = want if reference.length is None else reference.length
        name = "the file" if location == wire.INSIDE else f"external data {location!r}"
        if length != want:
            raise InvalidModel(
                f"shape {list(reference.shape)} of {reference.dtype} needs {want} bytes, {name} holds {length} for it"
            )
        if offset < 0 or offset + length > len(data):
            raise InvalidModel(
                f"{name} has {len(data)} bytes, the tensor lies at {offset} to {offset + length}",
                fix="Get the whole data file again.",
            )
        return StoredTensor(data, offset, reference)

    def _file(self, location: str) -> memoryview:
        if location not in self._open:
            self._open[location] = self._read(location)
        return self._open[location]

    def _read(self, location: str) -> memoryview:
        """No path that leaves the folder is opened, whether by '..', as an absolute one, or through a link."""
        if not location or "\0" in location:
            raise InvalidModel("its external data has no location")
        path = self._folder / location
        absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).is_absolute()
        if absolute or not path.resolve().is_relative_to(self._folder.resolve()):
            raise InvalidModel(
                f"external data {location!r} leaves the folder of the model",
                fix="Put the data file itself beside the model and name it by a relative path.",
            )
        try:
            return read(path)
        except OSError as e:
            raise InvalidModel(
                f"external data {location!r} cannot be read: {(e.strerror or str(e)).lower()}",
                fix="Put the data file beside the model.",
            ) from e


def open_model(path: Path) -> memoryview:
    """The bytes of the model file.

    Raises:
        BadRequest: There is no such file, or it cannot be read.
    """
    try:
        return read(path)
    except OSError as e:
        reason = "is a folder" if path.is_dir() else (e.strerror or str(e)).lower()
        raise BadRequest(f"cannot be read: {reason}", where=str(path), fix="Give the path of an .onnx file.") from e
