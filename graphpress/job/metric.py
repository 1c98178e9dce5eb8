"""What the user measures a model by, higher is better; top-1 accuracy where the data has labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from graphpress.errors import CalibrationError
from graphpress.observe.binding import LABELS
from graphpress.observe.data import CalibrationData
from graphpress.runner import Runner

Evaluate: TypeAlias = Callable[[Runner], float]

_WHERE = f"data, array {LABELS!r}"


def top1(data: CalibrationData) -> Evaluate:
    """Accuracy in percent of the first output's largest class against the labels of ``data``.

    Labels are whole numbers, one a sample, or one a position of an output that has its classes on the last axis or on
    the second; negative ones do not count.

    Raises:
        CalibrationError: When called: labels that do not fit the output.
    """

    def evaluate(runner: Runner) -> float:
        right, counted, start = 0, 0, 0
        labels = np.asarray(data.labels)
        for feeds in data.batches(32):
            scores = next(iter(runner(feeds).values()))
            given = labels[start : start + len(scores)]
            axis, _ = _fit(given, scores.shape)
            found = scores.reshape(len(scores), -1).argmax(1) if axis is None else scores.argmax(axis)
            right += int((found.reshape(given.shape) == given).sum())
            counted += int((given >= 0).sum())
            start += len(scores)
        return 100.0 * right / max(counted, 1)

    return evaluate


def check_labels(labels: np.ndarray, model: ir.Model) -> None:
    """Before anything is run: whether labels are classes of the first output, as far as its shape is known.

    Raises:
        CalibrationError: They are none; names the first sample that is wrong.
    """
    if labels.dtype.kind not in "biuf" or (labels.dtype.kind == "f" and (labels != np.rint(labels)).any()):
        what = f"holds {labels.dtype}, not whole numbers: {labels.reshape(-1)[:1].tolist()[0]!r} is no class"
        raise CalibrationError(what, where=_WHERE, fix="Give the number of the class of each sample, counted from 0.")
    shape = model.graph.outputs[0].shape if model.graph.outputs else None
    given = tuple(shape)[1:] if shape is not None else ()
    sizes = [size for size in given if isinstance(size, int)]
    if not sizes or len(sizes) < len(given):
        return
    _, classes = _fit(labels, (len(labels), *sizes))
    if labels.max(initial=0) >= classes:
        sample = int(np.argwhere(labels >= classes)[0][0])
        what = f"holds {labels[labels >= classes][0]} at sample {sample}, the first output has {classes} classes"
        raise CalibrationError(
            what, where=_WHERE, fix="Count classes from 0, or measure in a way of your own (evaluate=)."
        )


def _fit(labels: np.ndarray, scores: tuple[int, ...]) -> tuple[int | None, int]:
    """(the axis of the classes, None where all but the first are theirs; their number)."""
    if labels.size == len(labels):
        return None, math.prod(scores[1:])
    for axis in (len(scores) - 1, 1):
        if 0 < axis < len(scores) and labels.shape == scores[:axis] + scores[axis + 1 :]:
            return axis, scores[axis]
    raise CalibrationError(
        f"has shape {labels.shape}, which does not fit the first output's {scores}", where=_WHERE,
        fix="Give one class number a sample; of one-hot rows: labels.argmax(1).",
    )  # fmt: skip
