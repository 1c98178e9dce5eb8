"""What is measured on a model: its float file, calibration data, the task's scores, inputs for latency."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from graphpress.errors import BadRequest, nearest
from graphpress.runner import Arrays, Runner

Scores = Mapping[str, float]  # the first one is the headline
Kind = Literal["classifier", "detector", "speech", "language"]


@dataclass(frozen=True)
class Task:
    """One real model with everything that is measured on it. Data are read when they are asked for.

    Attributes:
        name: Unique over all tasks; a file name.
        kind: What it is.
        file: Path of the float ONNX model; a model that has no file yet is written into the folder given.
        data: Calibration data as the command line takes them: input name -> array, samples first, and ``labels``
            where the task has classes. An array of one axis more than its input holds whole feeds (recurrent models).
            None of the samples is scored.
        scores: The task's figures of a runner, headline first, given the float model's runner beside it.
        feeds: Inputs for one run of the given batch size.
        batches: Batch sizes for latency; only 1 where the file fixes it.
        higher: Whether a higher headline is better.
        note: What a reader of the figures must know.
        apart: How far a runner's predictions are from the float model's, in nats; None: no such figure.
    """

    name: str
    kind: Kind
    file: Callable[[Path], Path]
    data: Callable[[], dict[str, np.ndarray]]
    scores: Callable[[Runner, Runner], Scores]
    feeds: Callable[[int], Arrays]
    batches: tuple[int, ...] = (1, 32)
    higher: bool = True
    note: str = ""
    apart: Callable[[Runner, Runner], float] | None = None


def first(data: Arrays, count: int) -> dict[str, np.ndarray]:
    """The first ``count`` samples, over again from the start where there are fewer; labels left out."""
    return {k: np.take(a, np.arange(count), axis=0, mode="wrap") for k, a in data.items() if k != "labels"}


def in_batches(runner: Runner, name: str, samples: np.ndarray, size: int) -> np.ndarray:
    """The first output over all samples (axis 0), ``size`` of them a run."""
    cuts = range(0, len(samples), size)
    return np.concatenate([runner({name: samples[i : i + size]})[runner.output_names[0]] for i in cuts])


def parts(total: int, held_in: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices of a seeded random choice of ``held_in`` for calibration, and of the rest for the score, both sorted."""
    order = np.random.default_rng(seed).permutation(total)
    return np.sort(order[:held_in]), np.sort(order[held_in:])


def select(tasks: Iterable[Task], pattern: str = "*") -> list[Task]:
    """The tasks whose name matches one of the comma-separated globs.

    Raises:
        BadRequest: A glob matches no task.
    """
    tasks = list(tasks)
    chosen: dict[str, Task] = {}
    for glob in pattern.split(","):
        matching = [t for t in tasks if fnmatch.fnmatchcase(t.name, glob)]
        if not matching:
            raise BadRequest("matches no model", where=f"models {glob!r}", fix=nearest(glob, [t.name for t in tasks]))
        chosen |= {t.name: t for t in matching}
    return [t for t in tasks if t.name in chosen]
