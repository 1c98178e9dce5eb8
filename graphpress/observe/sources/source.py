"""A kind of files that arrays are made of: its options are its fields, it is found by being in this folder."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphpress.errors import BadRequest, CalibrationError
from graphpress.observe.data import CalibrationData


@dataclass(frozen=True)
class Source(abc.ABC):
    """Files of one kind, and how they become inputs of a model.

    Attributes:
        path: A file, or a folder of them, folders in it included.
        samples: At most so many files, spread evenly over the sorted names.
    """

    path: str | Path
    samples: int = field(default=512, kw_only=True)

    name: ClassVar[str]
    endings: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise BadRequest(f"samples={self.samples} leaves nothing", where=self.name, fix="Give a number from 1 up.")

    @abc.abstractmethod
    def batches(self, model: ir.Model, files: Sequence[Path], notes: list[str]) -> Iterator[dict[str, np.ndarray]]:
        """Arrays by name, samples first, a bounded number at a time; ``notes`` takes what the report should say."""

    def read(self, model: ir.Model) -> CalibrationData:
        """The data for a model.

        Raises:
            CalibrationError: No such file, none of the kind, or one that cannot be read or does not fit.
        """
        files = found(Path(self.path), self.endings)
        if not files:
            known = ", ".join(self.endings)
            raise CalibrationError(f"holds no {self.name} ({known})", where=str(self.path))
        notes: list[str] = []
        taken = [files[i] for i in spread(len(files), self.samples)]
        if len(taken) < len(files):
            notes.append(f"{len(taken)} of {len(files)} files, evenly spread ({self.name}: samples={self.samples})")
        return CalibrationData.from_batches(self.batches(model, taken, notes), lambda: notes)


def found(path: Path, endings: Sequence[str]) -> list[Path]:
    """The file, or the files of a folder and the folders in it that end so, sorted; hidden ones are passed over.

    Raises:
        CalibrationError: There is no such file or folder.
    """
    if not path.exists():
        raise CalibrationError("there is no such file or folder", where=str(path))
    if path.is_file():
        return [path]
    inside = (f for f in path.rglob("*") if f.suffix.lower() in endings and f.is_file())
    return sorted(f for f in inside if not any(part.startswith(".") for part in f.relative_to(path).parts))


def the_input(model: ir.Model, wanted: str, rank: int, where: str) -> ir.Value:
    """The input that is meant: by name, else the only one of this rank.

    Raises:
        CalibrationError: There is none, or more than one.
    """
    free = [v for v in model.graph.inputs if not v.is_initializer()]
    fits = [v for v in free if v.shape is None or len(v.shape) == rank]
    meant = [v for v in fits if v.name == wanted] if wanted else fits
    if len(meant) == 1:
        return meant[0]
    there = ", ".join(f"{v.name} {_shape(v)}" for v in free)
    if wanted:
        raise CalibrationError(f"the model has no input {wanted!r} of {rank} axes", where=where, fix=f"It has {there}.")
    if fits:
        fix = f"Say which is meant (input={fits[0].name})."
        raise CalibrationError(f"the model has {len(fits)} inputs of {rank} axes ({there})", where=where, fix=fix)
    raise CalibrationError(f"the model has no input of {rank} axes", where=where, fix=f"It has {there}.")


def _shape(value: ir.Value) -> str:
    return f"[{', '.join(map(str, value.shape))}]" if value.shape is not None else "[?]"


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` positions, evenly spread."""
    return list(range(count)) if count <= most else [i * count // most for i in range(most)]


def shares(files: Sequence[Path], samples: int) -> list[tuple[int, Path]]:
    """(how many samples of it, file) of each, together ``samples``; there are not more files than that."""
    ends = [i * samples // len(files) for i in range(len(files) + 1)]
    return [(stop - start, file) for start, stop, file in zip(ends, ends[1:], files, strict=False)]


def window(value: ir.Value, asked: int | None, where: str) -> int:
    """The length of a sample: what is asked, and what the last axis of the input says.

    Raises:
        CalibrationError: They differ, or neither is known.
    """
    last = value.shape[-1] if value.shape is not None and len(value.shape) else None
    fixed = last if isinstance(last, int) else None
    if fixed is not None and asked not in (None, fixed):
        raise CalibrationError(f"length {asked} is not the model's, {fixed}", where=where, fix="Leave length out.")
    length = fixed if fixed is not None else asked
    if length is None:
        raise CalibrationError("the model leaves the length open", where=where, fix="Give length, such as length=256.")
    if length < 1:
        raise CalibrationError(f"length={length} leaves nothing", where=where, fix="Give a number from 1 up.")
    return length


def missing(name: str, extra: str) -> BadRequest:
    """What is said where a package that only this kind needs is not installed."""
    return BadRequest(f"{name} is not installed", where=extra, fix=f"Install it: pip install 'graphpress[{extra}]'.")
