"""ONNX files in and out. What is loaded is checked first: a file that cannot be compiled is refused with one error."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError

from graphpress.errors import InvalidModel, VerifyError
from graphpress.frontends import checks, finite, settle, stored, wire
from graphpress.frontends.save import save
from graphpress.frontends.scrub import drop_undecodable
from graphpress.graph import edit, names, verify

__all__ = ["READS", "load", "of_proto", "save"]

READS = (".onnx",)  # the endings of files that ``load`` reads

_PICKLE = "Pickles can run any code and are never loaded: build the module in Python and call graphpress.trace."
# What people take for ONNX files: (offset, first bytes, what it is, the way out).
_OTHERS = (
    (0, b"PK\x03\x04", "a zip archive, perhaps a torch checkpoint", _PICKLE),
    (0, b"\x80", "a Python pickle, perhaps a torch checkpoint", _PICKLE),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself", "Run `git lfs pull`."),
    (0, b"\x89HDF", "an HDF5 file", "Convert it to ONNX first."),
    (4, b"TFL3", "a TensorFlow Lite model", "Convert it to ONNX first."),
    (4, b"ORTM", "a model in ONNX Runtime's own format", "Give the ONNX file that it was made from."),
    (8, b'{"', "a safetensors file: weights without a graph", "Export the model to ONNX, or call graphpress.trace."),
    (257, b"ustar", "a tar archive, perhaps a torch checkpoint", _PICKLE),
)


def load(
    path: str | os.PathLike[str],
    *,
    freeze_inputs: bool | None = None,
    allow_nonfinite: bool = False,
    domains: Collection[str] = (),
) -> ir.Model:
    """Load an ONNX file. Its weights are looked through once and stay in the file, memory-mapped, until asked for.

    Node names are unique in the whole model afterwards, value names in the main graph with its subgraphs. The opset
    stays as it is.

    Args:
        path: A binary ONNX file of opset 7 or higher, with its external data in the same folder or below.
        freeze_inputs: Whether initializers that are listed as inputs become constants: True all, False none, None those
            of files that list every weight so (see ``settle.freeze_inputs``). In files up to IR version 3 all do.
        allow_nonfinite: Accept NaN and infinities in weights.
        domains: Domains of custom operators to accept beside the known ones.

    Raises:
        InvalidModel: The file is not a model that can be compiled; names the place, the rule and the way out.
        BadRequest: The file cannot be read.
    """
    path = Path(path)
    how = freeze_inputs, allow_nonfinite, domains
    return _loaded(stored.open_model(path), path.parent, str(path), *how)


def of_proto(proto: onnx.ModelProto) -> ir.Model:
    """A model in memory, checked as a file is. It is copied, so at most 2 GiB.

    Raises:
        InvalidModel: It cannot be compiled, is too large, or its weights lie in a file.
    """
    fix = "Give the path of its file."
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in proto.graph.initializer):
        raise InvalidModel("its weights lie in a file beside it", where="ModelProto", fix=fix)
    try:
        data = proto.SerializeToString()
    except (ValueError, EncodeError) as e:
        raise InvalidModel("is over 2 GiB", where="ModelProto", fix=fix) from e
    return _loaded(memoryview(data), Path(), "ModelProto", None, False, ())


def _loaded(
    data: memoryview, folder: Path, where: str, freeze: bool | None, nonfinite: bool, domains: Collection[str]
) -> ir.Model:
    store = stored.Store(data, folder)
    try:
        proto = _parse(data)
        drop_undecodable(proto)
        checks.check_proto(proto, store, domains)
        model = _graph(proto, store)
        names.unique_names(model)
        settle.freeze_inputs(model, freeze)
        _verify(model)
        if not nonfinite:
            finite.check_finite(model)
    except InvalidModel as e:
        place = f"{where}: {e.where}" if e.where else where
        raise InvalidModel(e.what, where=place, fix=e.fix or "Export the model anew.") from e
    except Exception as e:  # whatever a damaged file makes of the libraries that read it, it is the file's fault
        raise InvalidModel(f"cannot be read as a graph: {_root(e)}", where=where, fix="Get the file again.") from e
    return model


def _parse(data: memoryview) -> onnx.ModelProto:
    if not data:
        raise InvalidModel("the file is empty")
    for offset, magic, what, fix in _OTHERS:
        if data[offset : offset + len(magic)] == magic:
            raise InvalidModel(f"not an ONNX file but {what}", fix=fix)
    try:
        return onnx.ModelProto.FromString(wire.skeleton(data))
    except (wire.Malformed, DecodeError) as e:
        text = all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in data[:64])
        what = "not an ONNX file but text" if text else f"damaged or cut short, or no ONNX file: {e}"
        raise InvalidModel(what, fix="Give a whole binary .onnx file.") from e


def _graph(proto: onnx.ModelProto, store: stored.Store) -> ir.Model:
    """The graph, with what lies outside of the message in place."""
    model = ir.from_proto(proto)
    for graph in edit.graphs(model):
        if isinstance(graph, ir.Graph):
            for value in graph.initializers.values():
                if isinstance(value.const_value, ir.ExternalTensor):
                    value.const_value = store.tensor(value.const_value)
        for node in graph:
            for name, attr in list(node.attributes.items()):
                if isinstance(attr.value, ir.ExternalTensor):
                    node.attributes[name] = ir.AttrTensor(name, store.tensor(attr.value), doc_string=attr.doc_string)
    return model


def _verify(model: ir.Model) -> None:
    """The rules that hold after every pass; nodes may stand in any order in a file, not in a pipeline."""
    try:
        verify.check(model)
    except VerifyError:
        settle.sort(model)
        try:
            verify.check(model)
        except VerifyError as e:
            raise InvalidModel(e.what, where=e.where, fix=e.fix) from e


def _root(error: BaseException) -> str:
    """What the innermost error says, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{error}".split())[:200] or type(error).__name__
