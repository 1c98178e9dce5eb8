"""Calibration data: named arrays, samples first, streamed in batches."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphpress.errors import BadRequest, CalibrationError
from graphpress.observe import array_files, npz
from graphpress.observe.binding import LABELS, Binding, bind
from graphpress.observe.npy import Header
from graphpress.observe.parts import Part, consistent, fill, samples_in

_PIECE = 64  # samples that are hashed or checked at a time


class _Folder:
    """A temporary folder that goes with the last data that needs it."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="graphpress-data-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True)
class CalibrationData:
    """Samples for the inputs of a model, read when needed. ``graphpress.calibration_data`` makes it of what you have.

    The first axis of every array counts samples. An array of an input's own rank holds rows of its batch axis; an
    array of one rank more holds whole inputs, fed one at a time (states, scalars); an array without axes is the same
    for all samples. Trailing shapes may differ from file to file. Inputs that no node reads may be missing. Element
    types are cast where no value can change (int32 to int64, uint8 to float32), never otherwise, but that floats are
    rounded to the half precision of an input, within its range.
    """

    parts: Sequence[Part]
    rows: np.ndarray | None = None  # the samples in use, ascending; None: all
    binding: Binding | None = None
    beside: frozenset[str] = frozenset()  # arrays that are no inputs of the model and may be there
    folder: _Folder | None = None  # lives as long as data that is read from it
    notes: tuple[str, ...] = ()  # what was decided when it was taken, for the report

    def __post_init__(self) -> None:
        for part in self.parts:
            consistent(part, self.parts[0])

    @classmethod
    def load(cls, path: str | Path, inputs: Sequence[str] = ()) -> CalibrationData:
        """Data of a file of arrays (.npz, .safetensors, .npy), or of a folder of them; ``labels`` is optional.

        Args:
            path: The file or folder. Files of a folder are consecutive samples in order of their names; or .npy files
                named after inputs.
            inputs: Names of the model's inputs: one .npy file is then of the only one, whatever its name.

        Raises:
            CalibrationError: No such file, damaged, or arrays that disagree on the number of samples.
        """
        return cls(array_files.parts(Path(path), inputs))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], labels: np.ndarray | None = None) -> CalibrationData:
        """Data in memory; nothing is copied.

        Raises:
            CalibrationError: Arrays that disagree on the number of samples, or of Python objects.
        """
        named = {k: np.asarray(v) for k, v in arrays.items()}
        if labels is not None:
            named[LABELS] = np.asarray(labels)
        for name, array in named.items():
            if array.dtype.hasobject and not all(isinstance(v, str) for v in array.flat):
                raise CalibrationError("holds Python objects, not numbers", where=f"data, array {name!r}")
        headers = {k: Header(v.shape, v.dtype) for k, v in named.items()}
        return cls([Part("data", headers, lambda: named)])

    @classmethod
    def from_batches(
        cls, batches: Iterable[Mapping[str, np.ndarray]], notes: Callable[[], Sequence[str]] = tuple
    ) -> CalibrationData:
        """Data of an iterable that is read once: a generator, a loader that shuffles.

        The batches are kept in a temporary folder for as long as the data lives, so memory holds one at a time.

        Args:
            batches: Arrays by name, samples first.
            notes: Asked when all are read.

        Raises:
            CalibrationError: The disk refuses, or batches that do not fit one another.
        """
        folder = _Folder()
        for i, batch in enumerate(batches):
            try:
                npz.save(folder.path / f"{i:08}.npz", {k: np.asarray(v) for k, v in batch.items()})
            except OSError as e:
                what = f"the temporary copy of the samples cannot be written ({e.strerror or e})"
                raise CalibrationError(what, where=str(folder.path), fix="Free space, set TMPDIR, or give less.") from e
        parts: list[Part] = []
        for f in sorted(folder.path.glob("*.npz")):
            start = sum(p.samples for p in parts)
            part = Part("", npz.headers(f), partial(npz.read, f))
            parts.append(dataclasses.replace(part, where=f"samples {start} to {start + part.samples - 1}"))
        return cls(parts, folder=folder, notes=tuple(notes()))

    def __len__(self) -> int:
        return sum(p.samples for p in self.parts) if self.rows is None else len(self.rows)

    @property
    def labels(self) -> np.ndarray | None:
        """One label for each sample in order, or None."""
        if not self.parts or LABELS not in self.parts[0].headers:
            return None
        found = [a[LABELS] for a in self._pieces(max(len(self), 1))]
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def allow(self, names: Iterable[str]) -> CalibrationData:
        """The same data, in which arrays of these names need not be inputs of the model: somebody reads them."""
        return dataclasses.replace(self, beside=self.beside | set(names))

    def bind(self, model: ir.Model) -> CalibrationData:
        """The same data, whose batches are ready to be fed to ``model`` (and to anything with its inputs).

        Raises:
            CalibrationError: No sample, an array that is no input, a missing input, a shape or type that does not fit.
        """
        if not len(self):
            raise CalibrationError("there is no sample", where=self.parts[0].where if self.parts else "data")
        binding = bind(model, [(p.where, p.headers) for p in self.parts], self.beside)
        if len(self) < (binding.exact or 1):
            raise CalibrationError(
                f"the model takes batches of {binding.exact}, the data has {len(self)} samples",
                where=self.parts[0].where, fix="Give more samples.",
            )  # fmt: skip
        return dataclasses.replace(self, binding=binding)

    def check(self, model: ir.Model) -> None:
        """Read everything and say what does not fit the model.

        Raises:
            CalibrationError: As for ``bind``, and for NaN or infinity in the data.
        """
        binding = self.bind(model).binding
        start = 0
        for piece in self._pieces(_PIECE):
            for name, array in piece.items():
                if _is_float(array) and not np.isfinite(array).all():
                    bad = np.argwhere(~np.isfinite(array))[0]
                    at = f"data, input {name!r}" + (f", sample {start + bad[0]}" if len(bad) else "")
                    raise CalibrationError(
                        f"holds {array[tuple(bad)]}", where=at, fix="Leave out or repair such samples."
                    )
            if binding is not None and (found := binding.overflow(piece)):
                name, most, limit = found
                raise CalibrationError(
                    f"holds {most:g}, the input's type ends at {limit:g}",
                    where=f"data, input {name!r}", fix="Give what the model is meant for; scale it as in training.",
                )  # fmt: skip
            start += samples_in(piece)

    def batches(self, size: int, *, beside: bool = False) -> Iterator[dict[str, np.ndarray]]:
        """The samples in order, ``size`` at a time; fewer where the shape changes and at the end.

        Labels and other arrays that are no inputs are there only if ``beside`` is asked for.

        Of bound data: ready feeds, in the size the model fixes if it does (samples that do not fill one are left out).
        """
        exact = self.binding.exact if self.binding else None
        size = exact or size
        for rows in fill(self._pieces(size), size):
            count = samples_in(rows)
            if self.binding is None:
                yield {k: v for k, v in rows.items() if beside or k not in self.beside | {LABELS}}
            elif exact is None or count == exact:
                feeds = self.binding.feeds(rows, count)
                yield feeds | {k: v for k, v in rows.items() if beside and k not in feeds}

    def take(self, n: int, seed: int = 0) -> CalibrationData:
        """At most ``n`` samples drawn without replacement, in their original order."""
        return self._pick(self._shuffled(seed)[: max(n, 0)])

    def split(self, held_out: int, seed: int = 0) -> tuple[CalibrationData, CalibrationData]:
        """(the rest, ``held_out`` samples drawn without replacement), each in the original order.

        Raises:
            BadRequest: Nothing would be left.
        """
        if not 0 <= held_out < len(self):
            raise BadRequest(f"cannot hold {held_out} of {len(self)} samples out", where="calibration data")
        order = self._shuffled(seed)
        return self._pick(order[held_out:]), self._pick(order[:held_out])

    def hold_back(self, samples: int, seed: int = 0) -> tuple[CalibrationData, CalibrationData]:
        """(the rest, about ``samples`` held back: at least one, and whole batches); too few of them are both."""
        exact = (self.binding.exact if self.binding is not None else None) or 1
        held = max(samples // exact, 1) * exact
        return self.split(held, seed) if len(self) >= 2 * held and len(self) > 1 else (self, self)

    def pick(self, samples: Sequence[int] | np.ndarray) -> CalibrationData:
        """The samples at these positions, each once, in their original order."""
        rows = np.arange(len(self)) if self.rows is None else self.rows
        return self._pick(rows[np.unique(np.asarray(samples, np.int64))])

    def digest(self) -> str:
        """SHA-256 over names, element types, shapes and elements; how the samples are spread over files is left out."""
        hashes = {name: hashlib.sha256() for name in (self.parts[0].headers if self.parts else ())}
        seen: dict[str, bytes] = {}
        for piece in self._pieces(_PIECE):
            for name, array in piece.items():
                array = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
                if array.ndim == 0 and name in seen:
                    continue
                head = f"{array.dtype.str}{array.shape[1:]}{array.ndim}".encode()
                if seen.get(name) != head:
                    hashes[name].update(head)
                    seen[name] = head
                raw = repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
                hashes[name].update(raw)
        text = "".join(f"{name}\0{h.hexdigest()}\n" for name, h in sorted(hashes.items()))
        return hashlib.sha256(f"{len(self)}\n{text}".encode()).hexdigest()

    def _shuffled(self, seed: int) -> np.ndarray:
        rows = np.arange(len(self)) if self.rows is None else self.rows
        return np.random.default_rng(seed).permutation(rows)

    def _pick(self, rows: np.ndarray) -> CalibrationData:
        return dataclasses.replace(self, rows=np.sort(rows))

    def _pieces(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        """The samples in use, labels with them, at most ``size`` at a time and never across two parts."""
        start = 0
        for part in self.parts:
            stop = start + part.samples
            chosen = np.arange(start, stop) if self.rows is None else self.rows
            chosen = chosen[np.searchsorted(chosen, start) : np.searchsorted(chosen, stop)] - start
            start = stop
            arrays = part.load() if len(chosen) else {}
            for i in range(0, len(chosen), size):
                index = chosen[i : i + size]
                whole = slice(int(index[0]), int(index[-1]) + 1)
                where = whole if whole.stop - whole.start == len(index) else index
                yield {k: np.asarray(a[where] if a.ndim else a) for k, a in arrays.items()}


def _is_float(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" or array.dtype == ir.DataType.BFLOAT16.numpy()
