"""The one way in for data: whatever a user has becomes ``CalibrationData`` for a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias
from zipfile import is_zipfile

import onnx_ir as ir

from graphpress.errors import CalibrationError
from graphpress.observe import array_files
from graphpress.observe.binding import LABELS
from graphpress.observe.data import CalibrationData
from graphpress.observe.sources.elements import Ranks, Taken, array_of, is_array, named, ranks, samples_first
from graphpress.observe.sources.kinds import kind_of, kinds
from graphpress.observe.sources.source import Source

DataLike: TypeAlias = "CalibrationData | Source | Mapping[str, Any] | Iterable[Any] | str | Path | None"

_FORMS = "Give arrays by input name, something to iterate that gives them, or a path."


def calibration_data(given: DataLike, model: ir.Model) -> CalibrationData | None:
    """Data for a model, of whatever there is.

    Args:
        given: Arrays by input name, samples first; one array or tensor for a model of one input; a tuple of arrays in
            the order of the inputs; anything to iterate (a DataLoader, a generator, a list, a dataset, a reader of
            ONNX Runtime's quantizer) that gives dicts, tuples or arrays, batches or single samples; a path of .npz,
            .npy or .safetensors or of a folder of them; ``Images(path, ...)`` and its like, or the path alone where a
            file beside says how to prepare them.
            An array called ``labels``, or one integer array behind the inputs, is for a metric.
            What does not say how long it is is read up to 4096 samples or 2 GiB.
        model: Its inputs are what data is for.

    Returns:
        The data; None of None. It is not yet held against the model (``CalibrationData.check``).

    Raises:
        CalibrationError: It is none of these; where, why and the way out.
    """
    if given is None or isinstance(given, CalibrationData):
        return given
    if isinstance(given, Source):
        return given.read(model)
    if isinstance(given, str | Path):
        return _of_path(Path(given), model)
    known = ranks(model)
    if isinstance(given, Mapping):
        return _of_mapping(given)
    if is_array(given) and not hasattr(given, "column_names"):
        return _of_element(given, known)
    if isinstance(given, tuple) and given and all(map(is_array, given)):
        return _of_element(given, known)
    given = _iterable(given)
    if isinstance(given, Iterable) or hasattr(given, "__getitem__"):
        return _of_iterable(given, known)
    fix = "Call it: give what it returns." if callable(given) else _FORMS
    raise CalibrationError(f"a {type(given).__name__} is no calibration data", where="data", fix=fix)


def _iterable(given: Any) -> Any:
    """The elements of a reader of ONNX Runtime's quantizer or of a dataset of NNCF; anything else as it is."""
    if hasattr(given, "get_inference_data"):
        return given.get_inference_data()
    if hasattr(given, "get_next") and not isinstance(given, Iterable):
        return iter(given.get_next, None)
    return given


def _of_mapping(given: Mapping[str, Any]) -> CalibrationData:
    splits = [k for k, v in given.items() if hasattr(v, "column_names")]
    if splits:  # a DatasetDict
        fix = f"Give one: data[{splits[0]!r}]."
        raise CalibrationError(f"is {len(splits)} datasets ({', '.join(map(str, splits))})", where="data", fix=fix)
    arrays = {str(k): array_of(v, f"data, array {str(k)!r}") for k, v in given.items()}
    return CalibrationData.from_arrays({k: v for k, v in arrays.items() if k != LABELS}, arrays.get(LABELS))


def _of_element(given: Any, known: Ranks) -> CalibrationData:
    return CalibrationData.from_arrays(samples_first(named(given, known, "data"), known))


def _of_iterable(given: Any, known: Ranks) -> CalibrationData:
    taken = Taken(given, known, _columns(given, known))
    data = CalibrationData.from_batches(taken, taken.notes)
    if not data.parts:
        fix = "A generator gives its samples only once: make it anew."
        raise CalibrationError(f"the {type(given).__name__} gives nothing", where="data", fix=fix)
    return data


def _columns(given: Any, known: Ranks) -> dict[str, str] | None:
    """Which columns of a Hugging Face dataset are taken, by which names: those of inputs, and its labels."""
    names = getattr(given, "column_names", None)
    if not isinstance(names, list):
        return None
    lacking = [n for n in known if n not in names]
    if lacking:
        fix = f"It has {', '.join(names)}: rename one (rename_column), or map what makes it."
        raise CalibrationError("the dataset has no such column", where=f"data, input {lacking[0]!r}", fix=fix)
    labels = next((n for n in (LABELS, "label") if n in names and n not in known), None)
    return {n: n for n in known} | ({labels: LABELS} if labels else {})


def _of_path(path: Path, model: ir.Model) -> CalibrationData:
    if not path.exists():
        raise CalibrationError("there is no such file or folder", where=str(path))
    if path.suffix.lower() in array_files.ENDINGS or (array_files.files(path) if path.is_dir() else is_zipfile(path)):
        return CalibrationData.load(path, list(ranks(model)))
    kind = kind_of(path)
    if kind is not None:
        return kind(path).read(model)
    others = ", ".join(f"{cls.name} ({', '.join(cls.endings)})" for cls in kinds().values())
    what = f"{'the folder holds' if path.is_dir() else 'is'} no {array_files.KNOWN} file, and no {others}"
    fix = "Save arrays, samples first: numpy.savez(path, INPUT=array)."
    raise CalibrationError(what, where=str(path), fix=fix)
