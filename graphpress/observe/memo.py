"""Calibration that remembers: trials of one job that differ in a few sites run the model over the data only once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphpress.observe import checkpoint
from graphpress.observe.collect import Calibration, collect
from graphpress.observe.data import CalibrationData
from graphpress.observe.observers import Range
from graphpress.runner import Executor
from graphpress.types import Scheme


class Recall:
    """Takes the place of `observe.collect.collect`. What is known of the same model and data is not collected again.

    The range of a value does not depend on what else is observed, so a plan with a few sites less needs no new run.

    Args:
        state: A file that keeps the state of the first calibration; see ``collect``.
    """

    def __init__(self, state: Path | None = None) -> None:
        self._state = state
        self._digest: tuple[CalibrationData, str] | None = None
        self._ranges: dict[tuple[str, str, Scheme], Range] = {}
        self._unobserved: dict[tuple[str, str, Scheme], str] = {}

    def __call__(
        self, model: ir.Model, values: Mapping[str, Scheme], data: CalibrationData, execute: Executor, **options: Any
    ) -> Calibration:
        """As `collect`."""
        if self._digest is None or self._digest[0] is not data:
            self._digest = data, data.digest()
        what = checkpoint.key(model, {}, self._digest[1])
        keys = {name: (what, name, scheme) for name, scheme in values.items()}
        new = {n: values[n] for n, k in keys.items() if k not in self._ranges and k not in self._unobserved}
        if new:
            found = collect(model, new, data, execute, state=self._state, **options)
            self._state = None  # what is collected later is less, and must not take the place of what was kept
        else:
            found = Calibration(samples=len(data))
        self._ranges |= {keys[name]: r for name, r in found.ranges.items()}
        self._unobserved |= {keys[name]: why for name, why in found.unobserved.items()}
        return dataclasses.replace(
            found,
            ranges={n: self._ranges[k] for n, k in keys.items() if k in self._ranges},
            unobserved={n: self._unobserved[k] for n, k in keys.items() if k in self._unobserved},
        )
