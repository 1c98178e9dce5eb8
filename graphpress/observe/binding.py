"""How calibration data meets the inputs of one model: by name, by rank, by element type."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from graphpress.errors import CalibrationError, nearest
from graphpress.observe import looks
from graphpress.observe.npy import Header

LABELS = "labels"  # the one array that everybody knows and that is not fed, unless the model has such an input


class Mode(enum.Enum):
    """How the array of an input is cut into batches."""

    ROWS = "rows"  # rank of the input: the first axis is its batch axis
    WHOLE = "whole"  # one axis more than the input: every sample is a complete feed (states, scalars)
    SHARED = "shared"  # no axis at all: the same for every sample
    ZEROS = "zeros"  # the data has none and no node reads it


@dataclass(frozen=True)
class Slot:
    """One model input. ``dims`` holds None where the size is free; ``dtype`` is None where the model does not say."""

    name: str
    dims: tuple[int | None, ...]
    dtype: np.dtype | None
    mode: Mode

    def feed(self, rows: Mapping[str, np.ndarray], count: int) -> np.ndarray:
        if self.mode is Mode.ZEROS:
            shape = [d if d is not None else (count if i == 0 else 1) for i, d in enumerate(self.dims)]
            return np.zeros(shape, self.dtype)
        array = rows[self.name][0] if self.mode is Mode.WHOLE else rows[self.name]
        if array.dtype.kind == "V" and self.dtype is not None:
            array = array.view(self.dtype)  # .npz files forget what kind of 2 bytes bfloat16 is
        return np.asarray(array, self.dtype, order="C")


@dataclass(frozen=True)
class Binding:
    """The inputs of a model, matched with data. ``exact`` is the only batch size the model takes, if it is fixed."""

    slots: tuple[Slot, ...]
    exact: int | None

    def feeds(self, rows: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
        """Arrays ready for a Runner, of the model's types; ``rows`` are ``count`` samples."""
        return {slot.name: slot.feed(rows, count) for slot in self.slots}

    def overflow(self, rows: Mapping[str, np.ndarray]) -> tuple[str, float, float] | None:
        """(input, number, largest of its type) of the first finite number that a cast would make infinite."""
        for slot in self.slots:
            array = rows.get(slot.name)
            if array is None or array.dtype.kind != "f" or slot.dtype not in _HALVES:
                continue
            most, limit = float(np.max(np.abs(array), initial=0.0)), float(ml_dtypes.finfo(slot.dtype).max)
            if most > limit:
                return slot.name, most, limit
        return None

    def count(self, feeds: Mapping[str, np.ndarray]) -> int:
        """How many samples some feeds hold."""
        rows = [slot.name for slot in self.slots if slot.mode is Mode.ROWS]
        return len(feeds[rows[0]]) if rows else 1


def bind(model: ir.Model, parts: Iterable[tuple[str, Mapping[str, Header]]], beside: Collection[str] = ()) -> Binding:
    """Match data with the inputs of a model.

    Args:
        model: The model to be fed.
        parts: (where from, headers) of each part of the data, samples first.
        beside: Arrays that need not be inputs.

    Raises:
        CalibrationError: Another array that is no input, a missing input, a shape or a type that does not fit.
    """
    inputs = {v.name or "": v for v in model.graph.inputs}
    slots: dict[str, Slot] = {}
    for where, headers in parts:
        for name in headers:
            if name not in inputs and name != LABELS and name not in beside:
                fix = looks.labels(name, headers[name].shape, headers[name].dtype)
                fix = fix or looks.renamed(inputs, headers) or nearest(name, inputs)
                raise CalibrationError("the model has no such input", where=_at(where, name), fix=fix)
        for name, value in inputs.items():
            slot = _slot(value, headers.get(name), where)
            if slot is not None and slots.setdefault(name, slot).mode is not slot.mode:
                raise CalibrationError("its rank differs from that in the other files", where=_at(where, name))
    return Binding(tuple(slots.values()), _exact(slots.values()))


def _slot(value: ir.Value, header: Header | None, where: str) -> Slot | None:
    name = value.name or ""
    if not isinstance(value.type, ir.TensorType | None):
        raise CalibrationError(f"is a {value.type}; only tensors can be calibrated", where=f"input {name!r}")
    dims = tuple(d if isinstance(d, int) else None for d in value.shape) if value.shape is not None else None
    dtype = None if value.dtype is None else value.dtype.numpy()
    if header is None:
        if value.is_initializer():
            return None  # it has a default
        if value.uses() or value.is_graph_output():
            raise CalibrationError(
                "the data lacks this input", where=_at(where, name), fix="Add an array of this name, samples first."
            )
        return Slot(name, dims or (), dtype, Mode.ZEROS)
    mode = Mode.ROWS if dims is None else _mode(header.shape, dims, _at(where, name))
    if dtype is not None and not (lossless(header.dtype, dtype) or rounds(header.dtype, dtype)):
        raise CalibrationError(
            f"is {header.dtype}, the model takes {dtype}, and that cast may lose values",
            where=_at(where, name), fix=f"Cast it yourself: array.astype({dtype.name!r}).",
        )  # fmt: skip
    return Slot(name, dims or (), dtype, mode)


def _mode(shape: tuple[int, ...], dims: tuple[int | None, ...], where: str) -> Mode:
    for mode, has, wants in (
        (Mode.SHARED, shape if shape == () else None, dims),
        (Mode.ROWS, shape[1:] if shape else None, dims[1:] if dims else None),
        (Mode.WHOLE, shape[1:] if shape else None, dims),
    ):
        if has is None or wants is None or len(has) != len(wants):
            continue
        if all(w is None or h == w for h, w in zip(has, wants, strict=True)):
            return mode
    want = ", ".join(str(d) if d is not None else "?" for d in dims)
    raise CalibrationError(
        f"has shape {shape}, the model takes ({want})",
        where=where,
        fix=looks.shape(shape, dims)
        or "Put the samples first: rows of the input's own batch axis, or one whole input a sample.",
    )


def _exact(slots: Iterable[Slot]) -> int | None:
    sizes = {s.name: s.dims[0] for s in slots if s.mode is Mode.ROWS and s.dims and s.dims[0] is not None}
    sizes |= {s.name: 1 for s in slots if s.mode is Mode.WHOLE}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise CalibrationError(
            f"the inputs fix different batch sizes ({said})",
            where="data", fix="Give each sample as one whole input: an array with one axis more than the input has.",
        )  # fmt: skip
    return next(iter(sizes.values()), None)


def lossless(source: np.dtype, target: np.dtype) -> bool:
    """Whether every value of one element type has its equal in the other; numpy calls int64 -> float64 safe too."""
    if target.kind == "O":  # ONNX strings
        return source.kind in "UO"
    digits = 8 * source.itemsize - (source.kind == "i")
    if source.kind in "iu" and target.kind == "f" and digits > np.finfo(target).nmant + 1:
        return False
    return bool(source == target or (source.kind in "biuf" and np.can_cast(source, target, "safe")))


def rounds(source: np.dtype, target: np.dtype) -> bool:
    """Whether a cast only rounds, as a model in half precision does with all it computes; or the bytes are those."""
    if target not in _HALVES:
        return False
    return source.kind == "f" or source == np.dtype("V2") == np.dtype(f"V{target.itemsize}")


_HALVES = (ir.DataType.FLOAT16.numpy(), ir.DataType.BFLOAT16.numpy())


def _at(where: str, name: str) -> str:
    return f"{where}, input {name!r}"
