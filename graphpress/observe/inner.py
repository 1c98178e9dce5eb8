"""Inner values: a model run so that values of any of its graphs come out by name, a batch at a time.

Whoever looks into a running model does it through ``InnerValues``: calibration, moments, diagnosis, the sensitivity
probe, the prefix of layer-by-layer methods, the witness of a rotation.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from graphpress.errors import GraphpressError
from graphpress.graph import edit
from graphpress.graph.cut import cut
from graphpress.observe.data import CalibrationData
from graphpress.observe.expose import Exposed, expose
from graphpress.runner import Arrays, Executor, Progress, Runner, quiet

WORKERS = min(os.cpu_count() or 1, 4)  # runs at a time: whole batches spread over cores better than single operators do
_BATCH = 8  # samples in a run of ``stream``
_Given = TypeVar("_Given")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class InnerValues:
    """Gives values of a model's graphs, by name, for feeds of it.

    Attributes:
        where: How each can be seen; those that cannot, with the reason.
        runner: Computes them; None where there is nothing to compute.
    """

    where: Exposed
    runner: Runner | None

    @classmethod
    def of(
        cls,
        model: ir.Model,
        names: Collection[str],
        execute: Executor,
        *,
        given: Sequence[str] | None = None,
        floats: bool = True,
        trial: Iterable[Arrays] = (),
    ) -> InnerValues:
        """Build the runner.

        Args:
            model: Not changed.
            names: The values; branches of If are reached.
            execute: Builds the runner.
            given: Values of the main graph that the feeds hold, instead of the inputs; nothing in front of them is run.
            floats: Whether values of other types count as those that cannot be seen.
            trial: Feeds, of which the first show whether all iterations of a Loop or Scan give a value in one shape;
                without them, values of bodies that repeat are not seen.

        Raises:
            StaleSite: The model has no such value.
            BadRequest: The values need more than is ``given``.
        """
        fed = [n for n in dict.fromkeys(names) if given is not None and n in given]
        rest = [n for n in dict.fromkeys(names) if n not in fed]
        if not rest and given is not None:
            return cls(Exposed(inputs=fed), None)
        part = model if given is None else cut(model, given, _outside(model, rest))
        made = _Build(part, rest, execute, floats)(trial)
        made.where.inputs.extend(fed)
        return made

    @property
    def unobserved(self) -> Mapping[str, str]:
        """The values that cannot be seen, with the reason."""
        return self.where.unobserved

    def __call__(self, feeds: Arrays) -> dict[str, np.ndarray]:
        """Every value that can be seen: computed, fed (not those that have a default and are not fed), constant."""
        got = {} if self.runner is None else self.runner({n: feeds[n] for n in self.runner.input_names if n in feeds})
        seen = {name: self.where.seen(name, got[output]) for name, output in self.where.outputs.items()}
        return self.where.constants | {name: feeds[name] for name in self.where.inputs if name in feeds} | seen

    def batches(self, feeds: Iterable[Arrays]) -> Iterator[dict[str, np.ndarray]]:
        """The values of each batch in order; ``WORKERS`` of the next ones are under way."""
        return ahead(self, feeds)

    def bytes(self, feeds: Arrays) -> int:
        """What a run on these feeds takes and gives; constants are there anyway."""
        given = {n: a for n, a in self(feeds).items() if n not in self.where.constants}
        return sum(a.nbytes for a in (*given.values(), *feeds.values()))


@dataclass(frozen=True)
class _Build:
    """Runners of a model that give values of it."""

    model: ir.Model
    names: Sequence[str]
    execute: Executor
    floats: bool

    def __call__(self, trial: Iterable[Arrays]) -> InnerValues:
        """With as many values of bodies that repeat as come out on the first feeds of ``trial``."""
        made = self.stacking(self.names)
        if not made.where.stacked:
            return made
        feeds = next(iter(trial), None)
        if feeds is not None and _runs(made, feeds):
            return made
        return self.stacking(() if feeds is None else self.that_run(list(made.where.stacked), feeds))

    def stacking(self, stack: Sequence[str]) -> InnerValues:
        work = self.model.clone()
        where = expose(work, self.names, floats=self.floats, stack=stack)
        outputs = list(dict.fromkeys(where.outputs.values()))
        return InnerValues(where, self.execute(work, outputs) if outputs else None)

    def that_run(self, names: list[str], feeds: Arrays) -> list[str]:
        """Those of ``names`` that can be stacked: of what fails together each half is tried for itself."""
        if _runs(_Build(self.model, names, self.execute, self.floats).stacking(names), feeds):
            return names
        middle = len(names) // 2
        return [n for half in (names[:middle], names[middle:]) if middle for n in self.that_run(half, feeds)]


def _runs(made: InnerValues, feeds: Arrays) -> bool:
    try:
        made(feeds)
    except GraphpressError:
        return False
    return True


def _outside(model: ir.Model, names: Sequence[str]) -> list[str]:
    """Of each value of a body, one that the node of the main graph around it gives; the others as they are."""
    outer = {
        value.name: node.outputs[0].name or ""
        for node in model.graph
        for body in edit.subgraphs(node)
        for scope in edit.scopes(body)
        for value in (*scope.inputs, *(o for n in scope for o in n.outputs))
    }
    return list(dict.fromkeys(outer.get(name, name) for name in names))


def ahead(run: Callable[[_Given], _Result], batches: Iterable[_Given]) -> Iterator[_Result]:
    """The result of each batch, or of whatever is given, in order, while the next ones are running already."""
    running: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        for given in batches:
            running.append(pool.submit(run, given))
            if len(running) > WORKERS:
                yield running.popleft().result()
        for rest in running:
            yield rest.result()


@dataclass(frozen=True)
class Stream:
    """Values of a model over data.

    Attributes:
        batches: The values of each batch by name, in order, once.
        unobserved: Those that cannot be seen, with the reason.
    """

    batches: Iterator[dict[str, np.ndarray]]
    unobserved: Mapping[str, str]


def stream(
    model: ir.Model,
    names: Collection[str],
    data: CalibrationData,
    execute: Executor,
    *,
    batch_size: int = _BATCH,
    progress: Progress = quiet,
) -> Stream:
    """Run a model over ``data`` and give inner values, a batch at a time.

    Args:
        model: Not changed.
        names: The values.
        data: Bound to the model here.
        execute: Builds the runner; several runs of it are under way at a time.
        batch_size: Samples a run.
        progress: Shows the batches.

    Raises:
        StaleSite: The model has no such value.
        CalibrationError: The data does not fit the model.
    """
    bound = data.bind(model)
    values, total = InnerValues.of(model, names, execute, trial=bound.batches(batch_size)), -(-len(bound) // batch_size)
    return Stream(values.batches(progress(bound.batches(batch_size), "observe", total)), values.unobserved)
