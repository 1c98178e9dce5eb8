"""Ranges of the step of a diffusion model: an explicit input of it, never a counter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir

from graphpress.errors import BadRequest, nearest
from graphpress.observe.data import CalibrationData


@dataclass(frozen=True)
class StepRanges:
    """Where the ranges of a model's step begin and end.

    Attributes:
        input: The input that holds the step: one number, or one a sample.
        bounds: Ascending. A range has its lower bound and not its upper one; the last one has both.
    """

    input: str
    bounds: tuple[float, ...]

    def __post_init__(self) -> None:
        steps = tuple(map(float, self.bounds))
        if len(steps) < 2 or not all(map(math.isfinite, steps)) or any(a >= b for a, b in pairwise(steps)):
            what = f"{list(self.bounds)} are no bounds of ranges"
            raise BadRequest(what, where=f"steps {self.input!r}", fix="Write them ascending: t=0,0.5,1.")
        object.__setattr__(self, "bounds", steps)

    @classmethod
    def read(cls, text: str) -> StepRanges:
        """From ``t=0,0.5,1``.

        Raises:
            BadRequest: It says anything else.
        """
        name, _, bounds = text.partition("=")
        try:
            return cls(name.strip(), tuple(float(part) for part in bounds.split(",")))
        except ValueError:
            raise BadRequest("are no ranges", where=f"steps {text!r}", fix="Write t=0,0.5,1.") from None

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def said(self, index: int) -> str:
        """A range in words."""
        end = "]" if index == len(self) - 1 else ")"
        return f"{self.input} in [{self.bounds[index]:g}, {self.bounds[index + 1]:g}{end}"

    def limits(self, dtype: np.dtype[Any]) -> np.ndarray:
        """The bounds as steps of a type are compared with: rounded to it, if it is one of floats."""
        return np.asarray(self.bounds, dtype if np.issubdtype(dtype, np.floating) else np.float64)

    def of(self, steps: np.ndarray) -> np.ndarray:
        """The range of each step.

        Raises:
            BadRequest: One lies in none.
        """
        steps = np.asarray(steps).ravel()
        bounds = self.limits(steps.dtype)
        lost = steps[~((steps >= bounds[0]) & (steps <= bounds[-1]))]
        if lost.size:
            what = f"step {lost[0]:g} lies in no range, they go from {self.bounds[0]:g} to {self.bounds[-1]:g}"
            raise BadRequest(what, where=f"input {self.input!r}", fix="Let the ranges reach it.")
        return np.minimum(np.searchsorted(bounds, steps, "right") - 1, len(self) - 1)

    def split(self, data: CalibrationData, model: ir.Model) -> list[CalibrationData]:
        """The samples of each range.

        Raises:
            BadRequest: The model has no such input, a step lies in no range, or a range has no samples.
        """
        inputs = [v.name or "" for v in model.graph.inputs]
        if self.input not in inputs:
            fix = nearest(self.input, inputs)
            raise BadRequest("the model has no such input", where=f"steps {self.input!r}", fix=fix)
        found = [np.asarray(rows[self.input]) for rows in data.batches(1)]
        if not all(a.size == 1 for a in found):
            raise BadRequest("a sample has more than one step", where=f"input {self.input!r}")
        place = self.of(np.concatenate([a.ravel() for a in found])) if found else np.zeros(0, int)
        for i in range(len(self)):
            if not (place == i).any():
                raise BadRequest(f"no sample has {self.said(i)}", where="data", fix="Give some, or join ranges.")
        return [data.pick(np.flatnonzero(place == i)) for i in range(len(self))]
