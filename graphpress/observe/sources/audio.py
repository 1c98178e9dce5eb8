"""Sound, cut into windows (soundfile, extra ``audio``)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphpress.errors import CalibrationError
from graphpress.observe.binding import LABELS
from graphpress.observe.sources import class_folders
from graphpress.observe.sources.source import Source, missing, shares, spread, the_input, window

_AT_ONCE = 32  # windows in memory
_CONFIG = "preprocessor_config.json"
_RATES = ("sr", "rate", "sample_rate", "sampling_rate")
_QUIET = 1e-7  # added to the variance, as transformers does


@dataclass(frozen=True)
class Audio(Source):
    """Sound files for a model that reads the wave itself: [samples, length] or [samples, 1, length], from -1 to 1.

    Several channels are averaged. A model of spectra or cepstra takes arrays. Nothing is resampled: files of another
    rate are refused. If all files lie in folders that can be the classes of the model, their names give the labels.

    Attributes:
        samples: At most so many windows, spread evenly.
        rate: Of the sound that the model was trained on, in Hz; None: as a preprocessor_config.json in the folder says.
        length: Points of a window; None: as the model's input has them.
        normalize: Whether each window is brought to mean 0 and variance 1.
        labels: Whether folders may be classes.
        input: Which input they are for; "": the only one of two axes, or of three.
    """

    rate: int | None = field(default=None, kw_only=True)
    length: int | None = field(default=None, kw_only=True)
    normalize: bool | None = field(default=None, kw_only=True)
    labels: bool = field(default=True, kw_only=True)
    input: str = field(default="", kw_only=True)

    name: ClassVar[str] = "audio"
    endings: ClassVar[tuple[str, ...]] = (".wav", ".flac", ".ogg", ".aiff")

    def batches(self, model: ir.Model, files: Sequence[Path], notes: list[str]) -> Iterator[dict[str, np.ndarray]]:
        """Windows of each file, at most 32 at a time.

        Raises:
            CalibrationError: No rate or length is said, a file has another rate, or is no sound.
        """
        where = f"audio {self.path}"
        flat = any(v.shape is None or len(v.shape) == 2 for v in model.graph.inputs if not v.is_initializer())
        value = the_input(model, self.input, 2 if flat else 3, where)
        told = self._told()
        rate = self.rate or told.get("sampling_rate")
        length = window(value, self.length, where)
        normalize = self.normalize if self.normalize is not None else bool(told.get("do_normalize", False))
        of = class_folders.labels(Path(self.path), files, model, notes) if self.labels else None
        for most, file in shares(files, self.samples):
            for rows in _windows(file, rate, length, most):
                rows = _normalized(rows) if normalize else rows
                fed = {value.name or "": rows if flat else rows[:, None]}
                fed |= {v.name or "": _scalar(v, rate) for v in model.graph.inputs if _is_rate(v)}
                yield fed | ({LABELS: np.full(len(rows), of[file])} if of else {})

    def _told(self) -> Mapping[str, Any]:
        path = (Path(self.path) if Path(self.path).is_dir() else Path(self.path).parent) / _CONFIG
        try:
            told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            return told if isinstance(told, dict) else {}
        except (OSError, ValueError) as e:
            raise CalibrationError("is not readable as JSON", where=str(path), fix="Give rate instead.") from e


def _windows(file: Path, rate: int | None, length: int, most: int) -> Iterator[np.ndarray]:
    """Windows of a file, [windows, length], evenly spread; a file that is shorter is padded with silence."""
    try:
        import soundfile
    except (ImportError, OSError) as e:  # OSError: without its C library
        raise missing("soundfile", "audio") from e
    try:
        with soundfile.SoundFile(file) as sound:
            _same_rate(file, sound.samplerate, rate)
            starts = [i * length for i in spread(max(sound.frames // length, 1), most)]
            for i in range(0, len(starts), _AT_ONCE):
                yield np.stack([_window(sound, start, length) for start in starts[i : i + _AT_ONCE]])
    except (soundfile.SoundFileError, OSError, ValueError) as e:
        said = " ".join(str(e).split())[:150]
        raise CalibrationError(f"not a readable sound file: {said}", where=str(file), fix="Leave it out.") from e


def _window(sound: Any, start: int, length: int) -> np.ndarray:
    sound.seek(start)
    wave = sound.read(length, dtype="float32", always_2d=True).mean(1)
    return np.pad(wave, (0, length - len(wave)))


def _same_rate(file: Path, found: int, wanted: int | None) -> None:
    if wanted is None:
        raise CalibrationError(
            f"has {found} Hz, and nothing says what the model was trained on",
            where=str(file), fix=f"If it was this, say --audio rate={found} (graphpress.Audio(path, rate={found})).",
        )  # fmt: skip
    if found != wanted:
        what = f"has {found} Hz, the model was trained on {wanted}"
        raise CalibrationError(what, where=str(file), fix="Resample it first: nothing is resampled here.")


def _normalized(rows: np.ndarray) -> np.ndarray:
    centred = rows - rows.mean(1, keepdims=True)
    return np.asarray(centred / np.sqrt(rows.var(1, keepdims=True) + _QUIET), np.float32)


def _is_rate(value: ir.Value) -> bool:
    return (value.name or "").lower() in _RATES and value.shape is not None and len(value.shape) == 0


def _scalar(value: ir.Value, rate: int | None) -> np.ndarray:
    return np.asarray(rate, value.dtype.numpy() if value.dtype is not None else np.int64)
