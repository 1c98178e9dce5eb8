"""Running a model over calibration data and observing the values that are to be quantized."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphpress.observe import checkpoint
from graphpress.observe.data import CalibrationData
from graphpress.observe.inner import WORKERS, InnerValues, ahead
from graphpress.observe.observers import Observer, Range, observer
from graphpress.runner import Executor, Progress, quiet
from graphpress.types import Scheme

BUDGET = 64 << 20  # bytes of observed values that the runs under way may give back together
_LARGEST = 64  # samples in a run: larger ones are no faster


@dataclass(frozen=True)
class Calibration(Mapping[str, Range]):
    """The outcome: value name -> Range.

    Attributes:
        ranges: What was found, by name.
        unobserved: Values without a range, with the reason: to be skipped, not to be guessed.
        samples: How many samples were run.
    """

    ranges: Mapping[str, Range] = field(default_factory=dict)
    unobserved: Mapping[str, str] = field(default_factory=dict)
    samples: int = 0

    def __getitem__(self, name: str) -> Range:
        return self.ranges[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.ranges)

    def __len__(self) -> int:
        return len(self.ranges)


def collect(
    model: ir.Model,
    values: Mapping[str, Scheme],
    data: CalibrationData,
    execute: Executor,
    *,
    batch_size: int | None = None,
    progress: Progress = quiet,
    state: Path | None = None,
) -> Calibration:
    """Find the range of every value over the data.

    Only the named values leave the runtime, and no batch outlives its observation: memory is bounded by the observers
    (some 40 kB a value) and ``BUDGET``. The result does not depend on the batch size as far as the runtime's own
    arithmetic does not.

    Args:
        model: Not changed.
        values: Name -> scheme whose observer and grid choose the range. Bodies of If, Loop and Scan are reached.
        data: Bound to the model here; see ``CalibrationData.bind``.
        execute: Builds the runner; several runs of it are under way at a time, so it should use one thread for each.
        batch_size: Samples a run; by default what fits the budget, measured on the first sample.
        progress: Shows the batches.
        state: A file that keeps the state every few seconds. A later call with the same model, values and data goes on
            from it, to the same result bit for bit.

    Raises:
        CalibrationError: The data does not fit the model.
        StaleSite: A value that the model does not have.
        BadRequest: An unknown observer, or a ``state`` that is some other file.
    """
    bound = data.bind(model)
    watch = {name: observer(scheme, len(bound)) for name, scheme in values.items()}
    inner = InnerValues.of(model, values, execute, trial=bound.batches(1))
    for name, array in inner.where.constants.items():
        watch[name].update(array, 1)
    live = {name: watch[name] for name in (*inner.where.inputs, *inner.where.outputs)}
    samples = 0
    if live:
        save = checkpoint.Checkpoint(state, checkpoint.key(model, values, data.digest())) if state else None
        samples = _Run(bound, inner, live, progress, save).run(batch_size)
    return _result(watch, inner.unobserved, samples)


def _result(watch: Mapping[str, Observer], hidden: Mapping[str, str], samples: int) -> Calibration:
    unobserved = dict(hidden)
    seen = {name: w for name, w in watch.items() if name not in unobserved}
    unobserved |= {n: "no element of it was seen: its branch never ran" for n, w in seen.items() if not w.count}
    known = {name: w for name, w in seen.items() if w.count}
    return Calibration(dict(zip(known, ahead(Observer.range, known.values()), strict=True)), unobserved, samples)


@dataclass
class _Run:
    """One pass over the data."""

    data: CalibrationData
    inner: InnerValues
    watch: Mapping[str, Observer]
    progress: Progress
    save: checkpoint.Checkpoint | None

    def run(self, size: int | None) -> int:
        """Observe everything that is not observed yet; the samples seen."""
        binding = self.data.binding
        assert binding is not None
        mark = self.save.load(self.watch) if self.save else checkpoint.Mark()
        mark.size = mark.size or binding.exact or size or self._batch_size()
        left = itertools.islice(self.data.batches(mark.size), mark.batches, None)
        total = -(-len(self.data) // mark.size) - mark.batches
        for count, seen in self._ahead(self.progress(left, "calibrate", total)):
            for name in [n for n in self.watch if n in seen]:
                self.watch[name].update(seen.pop(name), count)
            mark.batches, mark.samples = mark.batches + 1, mark.samples + count
            if self.save:
                self.save.save(self.watch, mark)
        if self.save:
            self.save.save(self.watch, mark, now=True)
        return mark.samples

    def _ahead(self, batches: Iterable[dict[str, np.ndarray]]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """(samples, observed values) of each batch in order, while the next ones are running already."""
        binding = self.data.binding
        assert binding is not None
        return ahead(lambda feeds: (binding.count(feeds), self.inner(feeds)), batches)

    def _batch_size(self) -> int:
        """As many samples as the budget holds, going by the first one."""
        first = next(iter(self.data.batches(1)))
        return max(1, min(BUDGET // (WORKERS + 1) // max(self.inner.bytes(first), 1), _LARGEST))
