"""Plans for one token at a time and for a whole prompt: what each is made of, and how long it takes in either phase."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from graphpress.job import engine
from graphpress.job.latency import compare_latency
from graphpress.observe.shaped import shaped
from graphpress.recipe import Recipe
from graphpress.runner import Progress
from graphpress.target import Target
from graphpress.tools.bench.figures.base import Figure
from graphpress.tools.bench.zoo import tasks
from graphpress.types import Role

_PHASES = ("decode", "batch=1,sequence=256")  # the model's context is 512, of which 256 are used
_FORMATS = ("w8a8-dynamic", "w4a16-g64")


def measure(zoo: Path, progress: Progress) -> Iterator[Figure]:
    """The code model, latency the objective; both plans timed side by side in both phases, on two threads."""
    import graphpress as gp

    (task,) = tasks(zoo, "codelm")
    model, data = ir.load(task.file(zoo)), {k: v for k, v in task.data().items() if k != "labels"}
    made, used = {}, {}
    for phase in _PHASES:
        target = Target.load(f"ort-cpu:{phase}")
        recipe = Recipe.load([*Recipe.load("clean").passes, *_allocate(), *Recipe.load("fold").passes])
        made[phase], report = gp.compile(model, recipe, data, target, gate=False, prove=False, progress=progress)
        weights = {s.node: v.dtype for s, v in (report.plan or {}).items() if s.role is Role.WEIGHT}
        used[phase] = ", ".join(f"{n} {kind}" for kind, n in sorted(Counter(weights.values()).items())) or "all float"
    for phase, other in (_PHASES, _PHASES[::-1]):
        target = Target.load(f"ort-cpu:{phase}")
        theirs, mine = (engine.of(target).execute(made[p], target=target) for p in (other, phase))
        feeds = shaped(model, task.feeds(1), target)
        took = compare_latency(theirs, mine, feeds, 5.0)
        yield Figure(
            f"code model, latency at {phase}", "no slower than the plan for the other phase",
            f"{took['after']:.2f} ms, the other plan {took['before']:.2f} ms ({took['ratio']:.2f}x)",
            took["ratio_low"] <= 1.0, f"weights: {used[phase]}; the other: {used[other]}",
        )  # fmt: skip


def _allocate() -> tuple[object, ...]:
    from graphpress.passes.allocate.allocate import Allocate

    return (Allocate(formats=_FORMATS, objective="latency", max_latency="1x", samples=8, measure=3),)
