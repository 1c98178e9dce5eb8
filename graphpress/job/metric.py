"""What the user measures a model by, higher is better; top-1 accuracy where the data has labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from graphpress.observe.data import CalibrationData
from graphpress.runner import Runner

Evaluate: TypeAlias = Callable[[Runner], float]


def top1(data: CalibrationData) -> Evaluate:
    """Accuracy in percent of the first output's largest class against the labels of ``data``."""

    def evaluate(runner: Runner) -> float:
        right, start = 0, 0
        labels = np.asarray(data.labels)
        for feeds in data.batches(32):
            scores = next(iter(runner(feeds).values()))
            right += int((scores.reshape(len(scores), -1).argmax(1) == labels[start : start + len(scores)]).sum())
            start += len(scores)
        return 100.0 * right / max(start, 1)

    return evaluate
