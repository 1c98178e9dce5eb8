"""Write a model: whole or not at all, tensor by tensor, the same bytes for the same model."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import BinaryIO, TypeAlias

import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError

from graphpress.errors import BadRequest
from graphpress.frontends import wire
from graphpress.frontends.scrub import scrub
from graphpress.graph import edit, file_size

EXTERNAL_FROM = 1 << 30  # bytes of weights from which on they go to a file of their own
_FILE_LIMIT = (1 << 31) - (1 << 20)  # protobuf reads no message of 2 GB; the rest of the graph needs room too
_PAGE, _PAGED = 4096, 1 << 20  # tensors of so many bytes start on a page, to be mapped
_LINE = 64  # smaller ones on a cache line
_DATA = ".data"
# element type -> the IR version that brought it
_TYPE_SINCE = {
    ir.DataType.FLOAT8E4M3FN: 9, ir.DataType.FLOAT8E4M3FNUZ: 9, ir.DataType.FLOAT8E5M2: 9,
    ir.DataType.FLOAT8E5M2FNUZ: 9, ir.DataType.INT4: 10, ir.DataType.UINT4: 10, ir.DataType.FLOAT4E2M1: 11,
    ir.DataType.FLOAT8E8M0: 12, ir.DataType.INT2: 13, ir.DataType.UINT2: 13, ir.DataType.FLOAT6E2M3: 14,
    ir.DataType.FLOAT6E3M2: 14,
}  # fmt: skip
_Place: TypeAlias = Callable[[Path], AbstractContextManager[BinaryIO]]


def save(model: ir.Model, path: str | os.PathLike[str], external: bool | None = None) -> None:
    """Write ``model`` to ``path``; whatever stops it, what was there before is still there.

    The IR version written is the lowest that has what the model uses. Stack traces and texts that name paths are left
    out. The model stays as it is, and stays usable when the files that it was loaded from are overwritten.

    Args:
        model: Any model.
        path: The file to write, in a folder that exists.
        external: Whether weights go to a file ``<path>.data`` beside it; None: when they take more than 1 GB.

    Raises:
        BadRequest: The place cannot be written, the disk is full, or the model does not fit into one file.
    """
    path = Path(path)
    size = sum(tensor.nbytes for _, tensor in _big(model.graph))
    if external is None:
        external = size > EXTERNAL_FROM
    elif not external and size > _FILE_LIMIT:
        raise BadRequest(f"{size >> 20} MB do not fit into 2 GB", where=str(path), fix="Save with external=True.")
    light = model.clone()  # the nodes are copied, the tensors shared
    light.ir_version = _ir_version(light)
    file_size.untyped(light)
    with _staged(path) as place:
        (_write_pair if external else _write_one)(light, path, place)


def _big(graph: edit.Scope) -> list[tuple[ir.Value, ir.TensorProtocol]]:
    """Initializers whose bytes are not for the message."""
    return [
        (v, t) for v in _initializers(graph)
        if (t := v.const_value) is not None and t.dtype != ir.DataType.STRING
        and t.nbytes and (t.nbytes >= wire.BIG or isinstance(t, ir.ExternalTensor))
    ]  # fmt: skip


def _initializers(graph: edit.Scope) -> list[ir.Value]:
    return list(graph.initializers.values()) if isinstance(graph, ir.Graph) else []


def _ir_version(model: ir.Model) -> int:
    """The lowest IR version for the model's opsets, element types and functions. (Metadata of nodes, of version 10, is
    skipped by older readers.)"""
    imports = [onnx.OperatorSetIdProto(domain=d, version=v) for d, v in model.opset_imports.items()]
    lowest = onnx.helper.find_min_ir_version_for(imports, ignore_unknown=True)  # noqa: TID251 - it holds the table
    types: set[ir.DataType | None] = set()
    for graph in edit.graphs(model):
        types.update(v.dtype for v in (*graph.inputs, *_initializers(graph)))
        types.update(v.dtype for node in graph for v in node.outputs)
    since = [_TYPE_SINCE.get(t, 0) for t in types if t is not None]
    return max(4, lowest, 10 if model.functions else 0, 11 if model.device_configurations else 0, *since)


def _write_one(light: ir.Model, path: Path, place: _Place) -> None:
    """One file: big initializers are streamed into the message."""
    tensors: dict[str, ir.TensorProtocol] = {}
    for value, tensor in _big(light.graph):
        tensors[value.name or ""] = tensor
        value.const_value = _reference(tensor, wire.INSIDE, 0)
    proto = _message(light)
    for head in proto.graph.initializer:
        if head.name in tensors:
            head.ClearField("data_location")
            del head.external_data[:]
    with place(path) as file:
        wire.write(file, proto, [tensors.get(head.name) for head in proto.graph.initializer])


def _write_pair(light: ir.Model, path: Path, place: _Place) -> None:
    """The message in one file, the bytes of all big initializers in another."""
    data = path.with_name(path.name + _DATA)
    end = 0
    with place(data) as file:
        for value, tensor in [pair for graph in edit.graphs(light) for pair in _big(graph)]:
            grain = _PAGE if tensor.nbytes >= _PAGED else _LINE
            start = -(-end // grain) * grain
            file.write(bytes(start - end))
            wire.copy(tensor, file)
            value.const_value = _reference(tensor, data.name, start)
            end = start + tensor.nbytes
    proto = _message(light)
    with place(path) as file:
        wire.write(file, proto, [None] * len(proto.graph.initializer))


def _reference(tensor: ir.TensorProtocol, location: str, offset: int) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        location, offset, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name or "",
        doc_string=tensor.doc_string, metadata_props=dict(tensor.metadata_props),
    )  # fmt: skip


def _message(light: ir.Model) -> onnx.ModelProto:
    proto = ir.to_proto(light)
    scrub(proto)
    return proto


@contextlib.contextmanager
def _staged(path: Path) -> Iterator[_Place]:
    """Gives a function that opens files to write under temporary names; at the end all get their own names.

    Raises:
        BadRequest: The system refuses; nothing is left behind.
    """
    staged: dict[Path, Path] = {}

    @contextlib.contextmanager
    def place(final: Path) -> Iterator[BinaryIO]:
        staged[final] = final.with_name(f".{final.name}.{secrets.token_hex(4)}")
        with staged[final].open("xb") as file:
            yield file

    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        yield place
        _commit(staged)
    except OSError as e:
        raise _unwritable(path, e) from e
    except EncodeError as e:
        what = "the graph without its initializers does not fit into 2 GB"
        raise BadRequest(what, where=str(path), fix="Make initializers of its constants.") from e
    finally:
        for temporary in staged.values():
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> BadRequest:
    what, fix = f"cannot be written: {(error.strerror or str(error)).lower()}", "Give a file name in a writable folder."
    # numpy's tofile says how many elements it wrote, not why it wrote no more: that has no errno.
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None):
        what, fix = "there is no space left to write it", "Free some, or choose another place."
    return BadRequest(what, where=str(path), fix=fix)


def _commit(staged: dict[Path, Path]) -> None:
    """Rename all into place; if one fails, those before it get their old content back."""
    with ExitStack() as tidy, ExitStack() as undo:
        for i, (final, temporary) in enumerate(staged.items()):
            if final.exists():
                shutil.copymode(final, temporary)
            if i + 1 < len(staged):  # the last one needs no way back
                kept = temporary.with_name(temporary.name + ".old")
                tidy.callback(kept.unlink, missing_ok=True)
                undo.callback(_way_back(final, kept))
            temporary.replace(final)
        undo.pop_all()


def _way_back(final: Path, kept: Path) -> Callable[[], object]:
    """What makes ``final`` again what it is now; ``kept`` is where its content waits."""
    if not final.exists():
        return final.unlink
    try:
        os.link(final, kept)
    except OSError:  # a file system without links
        shutil.copy2(final, kept)
    return lambda: kept.replace(final)
