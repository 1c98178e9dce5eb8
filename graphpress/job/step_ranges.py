"""Ranges of timesteps of a diffusion model, each with a plan of its own: one model a range, and a small index.

Which bits a layer can do with changes along the way from noise to picture (ViDiT-Q, arXiv:2406.02540, section 3.4). The
step is an explicit input of the model, never a counter. Each range stores all its weights: that is what it costs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphpress import plan_file
from graphpress.errors import BadRequest
from graphpress.job import bundle, engine
from graphpress.job.compile import compile as compiled
from graphpress.job.models import ModelLike, as_model, as_target, load, save
from graphpress.observe.sources.taken import DataLike, calibration_data
from graphpress.observe.steps import StepRanges
from graphpress.passes.quantize.apply_plan import ApplyPlan
from graphpress.recipe import Recipe
from graphpress.report.report import Report, stored_bytes
from graphpress.runner import Arrays, Runner
from graphpress.target import Target
from graphpress.types import Plan

INDEX = "ranges.json"


@dataclass(frozen=True)
class RangedPlan:
    """What is to be stored how in each range of steps."""

    steps: StepRanges
    plans: tuple[Plan, ...]

    def __post_init__(self) -> None:
        if len(self.plans) != len(self.steps):
            raise BadRequest(f"{len(self.plans)} plans for {len(self.steps)} ranges", where="plan of ranges")

    def to_json(self) -> dict[str, Any]:
        ranges = zip(self.plans, pairwise(self.steps.bounds), strict=True)
        return {"input": self.steps.input, "ranges": [{"from": a, "to": b, **p.to_json()} for p, (a, b) in ranges]}

    @classmethod
    def from_json(cls, data: Any, where: str = "plan of ranges") -> RangedPlan:
        """The inverse, of data that anybody may have written.

        Raises:
            BadRequest: It is none; names the range.
        """
        steps, ranges = _steps(data, where)
        return cls(steps, tuple(plan_file.read(r, f"{where}: range {i}") for i, r in enumerate(ranges)))


def _steps(data: Any, where: str) -> tuple[StepRanges, Sequence[Mapping[str, Any]]]:
    ranges = data.get("ranges") if isinstance(data, Mapping) else None
    if not isinstance(ranges, list) or not ranges or not all(isinstance(r, Mapping) for r in ranges):
        raise BadRequest("has no list 'ranges'", where=where)
    ends = [(r.get("from"), r.get("to")) for r in ranges]
    if any(not isinstance(e, int | float) for pair in ends for e in pair) or any(
        a[1] != b[0] for a, b in pairwise(ends)
    ):
        fix = "Let each range have 'from' and 'to', and begin where the one before ends."
        raise BadRequest("its ranges do not join", where=where, fix=fix)
    return StepRanges(str(data.get("input")), (ends[0][0], *(e[1] for e in ends))), ranges


@dataclass(frozen=True)
class RangedModel:
    """A model for each range of steps.

    Attributes:
        steps: The ranges.
        models: As the target runs them.
        target: Where.
        reports: What came of each compilation; none of what was loaded.
    """

    steps: StepRanges
    models: tuple[ir.Model, ...]
    target: Target
    reports: tuple[Report, ...] = ()

    @property
    def plan(self) -> RangedPlan:
        """What is stored how."""
        return RangedPlan(self.steps, tuple(r.plan or Plan() for r in self.reports))

    @property
    def size(self) -> dict[str, int]:
        """Bytes of the tensors: of all ranges together (``all``), and of the largest alone (``one``)."""
        found = [stored_bytes(m) for m in self.models]
        return {"all": sum(found), "one": max(found)}

    def runner(self) -> Runner:
        """Runs the model of the range that the step of each sample lies in."""
        runtime = engine.of(self.target)
        return _Dispatch(self.steps, [runtime.execute(m, target=self.target) for m in self.models])

    def save(self, folder: str | Path) -> None:
        """A file for each range, and ``ranges.json``; all of them or none."""
        with bundle.claim(Path(folder)) as draft:
            names = [f"range{i}.onnx" for i in range(len(self.models))]
            for model, name in zip(self.models, names, strict=True):
                save(model, draft / name)
            ranges = [{"from": a, "to": b, "model": n}
                      for (a, b), n in zip(pairwise(self.steps.bounds), names, strict=True)]  # fmt: skip
            data = {"input": self.steps.input, "target": self.target.name, "bytes": self.size, "ranges": ranges}
            (draft / INDEX).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
            bundle.publish(draft, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> RangedModel:
        """What ``save`` wrote.

        Raises:
            BadRequest: The index is not there, or is none.
        """
        path = Path(folder) / INDEX
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise BadRequest(f"cannot be read: {e}", where=str(path)) from e
        steps, ranges = _steps(data, str(path))
        models = tuple(load(path.parent / str(r.get("model"))) for r in ranges)
        return cls(steps, models, as_target(str(data.get("target"))))


@dataclass(frozen=True)
class _Dispatch:
    """Runners by range of the step."""

    steps: StepRanges
    runners: Sequence[Runner]

    @property
    def input_names(self) -> Sequence[str]:
        return self.runners[0].input_names

    @property
    def output_names(self) -> Sequence[str]:
        return self.runners[0].output_names

    def __call__(self, feeds: Arrays) -> dict[str, np.ndarray]:
        if self.steps.input not in feeds:
            raise BadRequest("the step is missing", where=f"input {self.steps.input!r}")
        place = self.steps.of(feeds[self.steps.input])
        used = np.unique(place)
        if len(used) == 1:
            return dict(self.runners[used[0]](feeds))
        if any(a.ndim == 0 or len(a) != len(place) for a in feeds.values()):
            what = "steps of several ranges, and not every input has a row for each"
            raise BadRequest(what, where=f"input {self.steps.input!r}", fix="Run samples of one range at a time.")
        rows = [np.flatnonzero(place == i) for i in used]
        parts = [self.runners[i]({n: a[r] for n, a in feeds.items()}) for i, r in zip(used, rows, strict=True)]
        back = np.argsort(np.concatenate(rows))
        return {n: np.concatenate([p[n] for p in parts])[back] for n in self.output_names}


def compile_ranges(
    model: ModelLike,
    recipe: str | Path | Mapping[str, Any] | Recipe | RangedPlan,
    data: DataLike,
    steps: StepRanges | str | None = None,
    target: str | Target = "ort-cpu",
    **options: Any,
) -> RangedModel:
    """``compile`` once for each range of a diffusion model's steps, on the samples whose step lies there.

    Args:
        model: As ``compile`` takes it, with the step among its inputs.
        recipe: Likewise; ``mixed`` chooses bits for each range by itself. Or a plan of ranges, which is applied.
        data: Calibration data; the steps of samples say where they belong.
        steps: The input and the bounds, ``t=0,0.5,1``; a plan of ranges has its own.
        target: Where the result will run.
        options: Of ``compile``.

    Raises:
        GraphpressError: As ``compile`` does; no such input, a step in no range, a range without samples.
    """
    if isinstance(recipe, RangedPlan):
        if steps is not None:
            raise BadRequest("the plan has ranges of its own", where="steps", fix="Leave one of the two out.")
        steps = recipe.steps
    if steps is None:
        raise BadRequest("there are no ranges", where="steps", fix="Write t=0,0.5,1.")
    steps = StepRanges.read(steps) if isinstance(steps, str) else steps
    loaded, where = as_model(model), as_target(target)
    given = calibration_data(data, loaded)
    if given is None:
        raise BadRequest("each range is calibrated on its own steps, and there are none", where="data")
    made = [
        compiled(loaded, _recipe(recipe, i), part, where, **options)
        for i, part in enumerate(steps.split(given, loaded))
    ]
    return RangedModel(steps, tuple(m for m, _ in made), where, tuple(r for _, r in made))


def _recipe(recipe: str | Path | Mapping[str, Any] | Recipe | RangedPlan, index: int) -> Any:
    if not isinstance(recipe, RangedPlan):
        return recipe
    return [*Recipe.load("clean").passes, ApplyPlan(recipe.plans[index]), *Recipe.load("fold").passes]
