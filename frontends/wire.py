"""Model files at the level of protobuf's wire format, so that big weights are never copied through protobuf.

A protobuf message is a run of fields; a message inside another is a field with its length in front. Reading: the bytes
of every big initializer of the main graph are cut out and replaced by a reference to where they lie in the file.
Writing: the inverse, tensor by tensor. Source: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import onnx
import onnx_ir as ir

INSIDE = "\0"  # the location of data that lies in the model file itself: no path can be called that
BIG = 1024  # bytes from which on a tensor is left in the file, or written as external data

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_GRAPH, _INITIALIZER, _RAW_DATA, _LOCATION = 7, 5, 9, 14  # of ModelProto, GraphProto and twice TensorProto


class Malformed(Exception):
    """The bytes are not a protobuf message."""


class _Field(NamedTuple):
    number: int
    kind: int
    start: int  # of the tag
    begin: int  # of the payload
    end: int


def skeleton(data: memoryview) -> bytes:
    """A serialised ModelProto without its big initializers' bytes; these refer to ``INSIDE`` at their offsets.

    Raises:
        Malformed: The bytes end too early or hold an impossible field.
    """

    def graph(field: _Field) -> bytes:
        return _cut(data, field.begin, field.end, _INITIALIZER, lambda tensor: _cut_tensor(data, tensor))

    return _cut(data, 0, len(data), _GRAPH, graph)


def _cut(data: memoryview, begin: int, end: int, number: int, inner: Callable[[_Field], bytes | None]) -> bytes:
    """The message with the payload of each field ``number`` replaced by what ``inner`` makes of it (None: as it is)."""
    pieces: list[bytes | memoryview] = []
    kept = begin
    for field in _fields(data, begin, end):
        if field.number == number and field.kind == _LENGTH and (new := inner(field)) is not None:
            pieces += data[kept : field.start], _header(number, len(new)), new
            kept = field.end
    pieces.append(data[kept:end])
    return b"".join(pieces)


def _cut_tensor(data: memoryview, tensor: _Field) -> bytes | None:
    if tensor.end - tensor.begin < BIG:
        return None
    fields = list(_fields(data, tensor.begin, tensor.end))
    raw = [f for f in fields if f.number == _RAW_DATA and f.kind == _LENGTH]
    if len(raw) != 1 or any(f.number == _LOCATION for f in fields):
        return None
    where = {"location": INSIDE, "offset": str(raw[0].begin), "length": str(raw[0].end - raw[0].begin)}
    entries = [onnx.StringStringEntryProto(key=k, value=v) for k, v in where.items()]
    reference = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL, external_data=entries)
    return b"".join([data[tensor.begin : raw[0].start], data[raw[0].end : tensor.end], reference.SerializeToString()])


def _fields(data: memoryview, at: int, end: int) -> Iterator[_Field]:
    while at < end:
        start = at
        tag, at = _varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        begin = at
        if kind == _VARINT:
            _, at = _varint(data, at, end)
        elif kind == _LENGTH:
            length, begin = _varint(data, at, end)
            at = begin + length
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            raise Malformed(f"byte {start} is no field of a model")
        if at > end or number == 0:
            raise Malformed(f"the field at byte {start} does not fit into the {len(data)} bytes of the file")
        yield _Field(number, kind, start, begin, at)


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise Malformed(f"the number at byte {at} has no end")


def _header(number: int, length: int) -> bytes:
    """Tag and length of a field."""
    return _encode(number << 3 | _LENGTH) + _encode(length)


def _encode(value: int) -> bytes:
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F)
    return bytes([*(g | 0x80 for g in groups[:-1]), groups[-1]])


def write(file: BinaryIO, model: onnx.ModelProto, tensors: Sequence[ir.TensorProtocol | None]) -> None:
    """Serialise ``model``, taking the bytes of its initializer i from ``tensors[i]`` (None: it has them).

    The graph comes last, so that no file cut short can pass for a whole one. ``model`` loses its graph.

    Raises:
        ValueError: Without the tensors, the model is larger than protobuf's 2 GB.
    """
    heads = [t.SerializeToString(deterministic=True) for t in model.graph.initializer]
    sizes = [0 if t is None else t.nbytes for t in tensors]
    raws = [b"" if t is None else _header(_RAW_DATA, size) for t, size in zip(tensors, sizes, strict=True)]
    del model.graph.initializer[:]
    graph = model.graph.SerializeToString(deterministic=True)
    model.ClearField("graph")
    fronts = [
        _header(_INITIALIZER, len(head) + len(raw) + size) + head + raw
        for head, raw, size in zip(heads, raws, sizes, strict=True)
    ]
    file.write(model.SerializeToString(deterministic=True))
    file.write(_header(_GRAPH, len(graph) + sum(map(len, fronts)) + sum(sizes)))
    file.write(graph)
    for front, tensor in zip(fronts, tensors, strict=True):
        file.write(front)
        if tensor is not None:
            copy(tensor, file)


def copy(tensor: ir.TensorProtocol, file: BinaryIO) -> None:
    """Write the bytes of one tensor, little endian and packed.

    Raises:
        ValueError: They are not as many as its shape and type say.
    """
    start = file.tell()
    tensor.tofile(file)  # type: ignore[attr-defined] # every tensor class has it, the protocol does not say so
    if file.tell() - start != tensor.nbytes:
        raise ValueError(f"tensor {tensor.name!r} wrote {file.tell() - start} bytes, its shape says {tensor.nbytes}")
