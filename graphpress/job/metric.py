"""What the user measures a model by, higher is better; top-1 accuracy where the data has labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np
import onnx_ir as ir

from graphpress.errors import BadRequest, CalibrationError
from graphpress.job import chance
from graphpress.job.measures import FEW, Figure
from graphpress.observe.binding import LABELS
from graphpress.observe.data import CalibrationData
from graphpress.runner import Arrays, Runner

Evaluate: TypeAlias = Callable[[Runner], float]
Counts: TypeAlias = tuple[np.ndarray, np.ndarray]  # labels of each sample that are met, and that it has, [samples]

_WHERE = f"data, array {LABELS!r}"


@dataclass
class Top1:
    """Accuracy in percent of the first output's largest class against the labels of ``data``.

    Labels are whole numbers, one a sample, or one a position of an output that has its classes on the last axis or on
    the second; negative ones do not count.

    Attributes:
        classes: How many there are, once it was called.
    """

    data: CalibrationData
    classes: int = field(default=0, init=False)

    name: ClassVar[str] = "top-1"
    title: ClassVar[str] = "top-1 %"
    best: ClassVar[int] = 1  # a label is met where it is among so many largest scores
    reads: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def on(cls, data: CalibrationData, options: Mapping[str, Any]) -> Top1:
        """One for these samples.

        Raises:
            BadRequest: It has no options.
            CalibrationError: There are no labels.
        """
        if options:
            raise BadRequest("has no options", where=f"metric {cls.name!r}")
        if data.labels is None:
            fix = f"Add an array {LABELS!r}: the number of the class of each sample."
            raise CalibrationError(f"metric {cls.name!r} needs labels", where="data", fix=fix)
        return cls(data)

    def __call__(self, runner: Runner) -> float:
        """Of what a runner gives.

        Raises:
            CalibrationError: Labels that do not fit the output.
        """
        right, counted = self.counts(runner)
        return 100.0 * float(right.sum()) / max(float(counted.sum()), 1.0)

    def counts(self, runner: Runner) -> Counts:
        """What a runner gets right."""
        tally = Tally(self)
        for feeds in self.data.batches(32):
            tally.see(runner(feeds))
        return tally.counts()


@dataclass
class Tally:
    """Counts the labels that a runner's outputs meet, of batches in the order of the metric's data."""

    metric: Top1
    right: list[np.ndarray] = field(default_factory=lambda: [np.zeros(0)])
    counted: list[np.ndarray] = field(default_factory=lambda: [np.zeros(0)])

    def see(self, outputs: Arrays) -> None:
        """The next batch.

        Raises:
            CalibrationError: Labels that do not fit the output.
        """
        scores = next(iter(outputs.values()))
        start = sum(map(len, self.counted))
        given = np.asarray(self.metric.data.labels)[start : start + len(scores)]
        axis, self.metric.classes = _fit(given, scores.shape)
        self.right.append(_met(scores, given, axis, self.metric.best).reshape(len(given), -1).sum(1))
        self.counted.append((given >= 0).reshape(len(given), -1).sum(1))

    def counts(self) -> Counts:
        return np.concatenate(self.right), np.concatenate(self.counted)


def _met(scores: np.ndarray, labels: np.ndarray, axis: int | None, best: int) -> np.ndarray:
    """Whether each label is among the ``best`` largest scores, in the shape of the labels."""
    scores = scores.reshape(len(scores), -1) if axis is None else np.moveaxis(scores, axis, -1)
    if best == 1:
        return np.asarray(scores.argmax(-1).reshape(labels.shape) == labels)
    few = min(best, scores.shape[-1])
    largest = np.argpartition(scores, -few, axis=-1)[..., -few:].reshape(*labels.shape, few)
    return np.asarray((largest == labels[..., None]).any(-1))


@dataclass(frozen=True)
class Labelled:
    """What labels say of the float model and of the other one on the same samples.

    Attributes:
        before, after: Accuracy in percent.
        error: Standard error of each, in points.
        samples: That have labels.
        lost: Points lost, in words of the gate.
        chance: Whether the float model is no better than a guess.
    """

    before: float
    after: float
    error: tuple[float, float]
    samples: int
    lost: Figure
    chance: bool


def labelled(metric: Top1, a: Counts, b: Counts, most: float, change: float = 1.0) -> Labelled:
    """Compare the ``counts`` of two runners, sample by sample: what both get wrong says nothing of what is lost.

    Args:
        metric: It has counted.
        a: Of the float model.
        b: Of the other.
        most: Points that may be lost.
        change: What one changed choice more would cost a sample at most, of 1: where no sample differs the labels
            do not tell.
    """
    seen = a[1] > 0
    mine, its = 100 * a[0][seen] / a[1][seen], 100 * b[0][seen] / b[1][seen]
    low, high = chance.mean_loss(mine - its, 100 * change)
    lost = float((mine - its).mean()) if seen.any() else 0.0
    figure = Figure(f"points of {metric.name} lost", lost, low, high, most, chance.at_most(lost, low, high, most))
    n = max(int(seen.sum()), 1)
    errors = [float(x.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf for x in (mine, its)]
    before, after = (100.0 * float(right.sum()) / max(float(counted.sum()), 1.0) for right, counted in (a, b))
    no_better = n >= FEW and chance.mean(mine)[0] <= 100 * metric.best / max(metric.classes, 1)
    return Labelled(before, after, (errors[0], errors[1]), n, figure, no_better)


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
