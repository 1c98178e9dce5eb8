"""What an iterable gives, one element at a time, as named arrays with the samples first.

An element is a dict by input name, a tuple or list in the order of the model's inputs (one more at the end: labels), or
one array. It may be a batch, one sample, or one whole feed: its rank against that of the input tells which.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphpress.errors import CalibrationError, nearest
from graphpress.observe.binding import LABELS
from graphpress.observe.parts import fill, samples_in

Ranks = Mapping[str, int | None]  # of a model's inputs by name, in order; None where it is not known

MOST_SAMPLES = 4096  # of an iterable that does not say how long it is: it may never end
MOST_BYTES = 2 << 30
_JOINED = 64  # samples that are kept in one file


def ranks(model: ir.Model) -> dict[str, int | None]:
    """Of the inputs that have no default."""
    return {
        v.name or "": len(v.shape) if v.shape is not None else None
        for v in model.graph.inputs
        if not v.is_initializer()
    }


def is_array(value: Any) -> bool:
    """Whether numpy can make an array of it as it is: an array, a tensor of torch, a picture."""
    return isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__")


def array_of(value: Any, where: str) -> np.ndarray:
    """An array of anything that is one, or of nested lists of numbers.

    Raises:
        CalibrationError: It holds something else, or rows of unequal length.
    """
    if hasattr(value, "detach") and hasattr(value, "cpu"):  # a tensor of torch, which is not imported for it
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as e:
        if "inhomogeneous" in str(e):
            raise CalibrationError("holds rows of unequal length", where=where, fix="Pad or cut them to one.") from e
        said = " ".join(str(e).split())[:200]
        raise CalibrationError(f"a {type(value).__name__} is no array: {said}", where=where) from e
    if array.dtype.hasobject and not all(isinstance(v, str) for v in array.flat):
        raise CalibrationError("holds Python objects, not numbers", where=where)
    listed = isinstance(value, list | tuple) and not any(map(is_array, value))
    return array.astype(np.float32) if listed and array.dtype == np.float64 else array  # Python's floats have no type


def named(element: Any, known: Ranks, where: str) -> dict[str, np.ndarray]:
    """The arrays of one element by name.

    Raises:
        CalibrationError: It is neither a dict, nor arrays for the inputs in order, nor one array.
    """
    if isinstance(element, Mapping):
        return {str(k): array_of(v, f"{where}, array {str(k)!r}") for k, v in element.items()}
    if _in_order(element):
        return _ordered(list(element), known, where)
    if is_array(element) or isinstance(element, list | tuple | int | float):
        return _ordered([element], known, where)
    raise CalibrationError(
        f"a {type(element).__name__} is no sample",
        where=where, fix="Give dicts of arrays by input name, tuples in the order of the inputs, or arrays.",
    )  # fmt: skip


def _in_order(element: Any) -> bool:
    """Whether it is a row of arrays, and no array written as a list of numbers."""
    return (isinstance(element, tuple) or (isinstance(element, list) and any(map(_holds, element)))) and bool(element)


def _holds(value: Any) -> bool:
    return is_array(value) or isinstance(value, Mapping)


def _ordered(given: Sequence[Any], known: Ranks, where: str) -> dict[str, np.ndarray]:
    if len(given) == 2 and isinstance(given[0], Mapping):  # (inputs by name, labels)
        return named(given[0], known, where) | {LABELS: _labels(given[1], where)}
    names = list(known)
    if len(given) == len(names) + 1:
        first = [array_of(v, f"{where}, input {n!r}") for n, v in zip(names, given, strict=False)]
        return dict(zip(names, first, strict=True)) | {LABELS: _labels(given[-1], where)}
    if len(given) != len(names):
        raise CalibrationError(
            f"it has {len(given)} array{'s' * (len(given) != 1)}, the model takes {len(names)} ({', '.join(names)})",
            where=where, fix="Give a dict by input name; labels for a metric are called 'labels'.",
        )  # fmt: skip
    return {n: array_of(v, f"{where}, input {n!r}") for n, v in zip(names, given, strict=True)}


def _labels(value: Any, where: str) -> np.ndarray:
    """The array behind the inputs, where it can be nothing but labels: whole numbers."""
    array = array_of(value, f"{where}, array {LABELS!r}")
    if array.dtype.kind in "biu":
        return array
    raise CalibrationError(
        f"it has one array more than the model has inputs, and that is {array.dtype}: labels are whole numbers",
        where=where, fix="Leave it out, or give a dict by input name.",
    )  # fmt: skip


def samples_first(arrays: Mapping[str, np.ndarray], known: Ranks) -> dict[str, np.ndarray]:
    """The arrays with an axis of samples in front.

    Arrays of one rank less than their inputs are one sample without a batch axis. Arrays of their inputs' own ranks
    whose first axes differ, as those of recurrent states do, are one whole feed.
    """
    more = {n: a.ndim - (known[n] or 0) for n, a in arrays.items() if known.get(n) is not None}
    ranked = {n: d for n, d in more.items() if known[n]}  # scalars have no batch axis to lack
    if ranked and set(ranked.values()) == {-1}:
        return {n: a if known.get(n) == 0 else a[None] for n, a in arrays.items()}
    if ranked and set(more.values()) == {0}:
        lengths = {len(arrays[n]) for n in ranked}
        if len(lengths) > 1:
            return {n: a[None] for n, a in arrays.items()}
    return dict(arrays)


class Taken:
    """The batches of an iterable, as far as they are taken, and what is to be said of it.

    Args:
        given: Read once.
        known: Of the model.
        rename: Of dicts: the columns to take, and their names here; None: all as they are.
    """

    def __init__(self, given: Iterable[Any], known: Ranks, rename: Mapping[str, str] | None = None) -> None:
        self.given, self.known, self.rename = given, known, rename
        self.more = ""

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return fill(self._elements(), _JOINED)

    def _elements(self) -> Iterator[dict[str, np.ndarray]]:
        endless = not hasattr(self.given, "__len__") or _length(self.given) is None
        samples = size = 0
        for i, element in enumerate(self.given):
            if (endless and samples >= MOST_SAMPLES) or size >= MOST_BYTES:
                limit = f"{samples} samples" if size < MOST_BYTES else f"{samples} samples ({size >> 20} MiB)"
                self.more = f"the first {limit} were taken; there are more"
                return
            where = f"data, element {i}"
            arrays = named(self._renamed(element, where), self.known, where)
            rows = samples_first(arrays, self.known)
            samples += samples_in(rows)
            size += sum(a.nbytes for a in rows.values())
            yield rows

    def _renamed(self, element: Any, where: str) -> Any:
        if self.rename is None or not isinstance(element, Mapping):
            return element
        lacking = [c for c in self.rename if c not in element]
        if lacking:
            raise CalibrationError(
                "it lacks the column", where=f"{where}, {lacking[0]!r}", fix=nearest(lacking[0], element)
            )
        return {name: element[column] for column, name in self.rename.items()}

    def notes(self) -> list[str]:
        """For the report, once all is read."""
        return [self.more] if self.more else []


def _length(given: Any) -> int | None:
    """Its length; None where it has none after all, as torch's loaders of streams."""
    try:
        return len(given)
    except TypeError:
        return None
