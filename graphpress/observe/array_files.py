"""Arrays in files: .npz and .safetensors by name, .npy by the name of the file, and folders of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from graphpress.errors import CalibrationError
from graphpress.observe import npy, npz, tensor_file
from graphpress.observe.binding import LABELS
from graphpress.observe.parts import Part

_NAMED = {".npz": npz, ".safetensors": tensor_file}
ENDINGS = (*_NAMED, ".npy")
KNOWN = f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"  # in a sentence


def files(path: Path) -> list[Path]:
    """The file, or those of a folder that hold arrays, in order of their names.

    Raises:
        CalibrationError: They are of several kinds.
    """
    if not path.is_dir():
        return [path]
    found = sorted(f for f in path.iterdir() if f.suffix.lower() in ENDINGS and not f.name.startswith("."))
    kinds = sorted({f.suffix.lower() for f in found})
    if len(kinds) > 1:
        raise CalibrationError(
            f"the folder holds {' and '.join(kinds)} files", where=str(path), fix="Keep one kind of them in it."
        )
    return found


def parts(path: Path, inputs: Sequence[str] = ()) -> list[Part]:
    """Of an array file, or of a folder of them, each file some samples; .npy files may be one for each input.

    Args:
        path: The file or folder.
        inputs: Names of a model's inputs; without them an .npy file has its own name.

    Raises:
        CalibrationError: No such file, damaged, none in the folder, or .npy files that are not known to be of an input.
    """
    found = files(path)
    if not found:
        raise CalibrationError(f"the folder holds no {KNOWN} file", where=str(path))
    kind = found[0].suffix.lower()
    if kind == ".npy":
        return _numbered(path, found, inputs)
    reader = _NAMED.get(kind, npz)
    return [Part(str(f), reader.headers(f), partial(reader.read, f)) for f in found]


def _numbered(path: Path, found: Sequence[Path], inputs: Sequence[str]) -> list[Part]:
    """One part of files that have the names of inputs, else consecutive parts of the only input."""
    stems = {f.stem for f in found} - {LABELS}
    if len(inputs) == 1 and not stems & set(inputs):
        if len(stems) == len(found):
            return [_part(str(f), {inputs[0]: f}) for f in found]
        if len(stems) == 1:
            return [_part(str(path), {LABELS if f.stem == LABELS else inputs[0]: f for f in found})]
    elif inputs and not stems <= set(inputs) and not (len(found) == 1 and len(inputs) == 1):
        odd = sorted(stems - set(inputs))[0]
        raise CalibrationError(
            f"{odd}.npy is none of the model's inputs", where=str(path),
            fix=f"Name each file after its input ({', '.join(inputs)}), or save one .npz.",
        )  # fmt: skip
    return [_part(str(path), {f.stem: f for f in found})]


def _part(where: str, by_name: Mapping[str, Path]) -> Part:
    headers = {name: npy.headers(f) for name, f in by_name.items()}
    return Part(where, headers, lambda: {name: npy.read(f) for name, f in by_name.items()})
