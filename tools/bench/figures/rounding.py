"""Learned rounding: 2 and 3 bits of a language model by AutoRound; `vision` has what is learned of CNNs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from graphpress.recipe import Recipe
from graphpress.runner import Progress
from graphpress.tools.bench.figures.base import Figure
from graphpress.tools.bench.task import Task
from graphpress.tools.bench.zoo import tasks

_NATS = {"codelm": 0.006, "codelm_outliers": 0.008}  # above float32, at 3 bits


def measure(zoo: Path, progress: Progress) -> Iterator[Figure]:
    """Each recipe beside the same with GPTQ in place of what it learns."""
    for name, most in _NATS.items():
        (task,) = tasks(zoo, name)
        model = ir.load(task.file(zoo))
        whole = _score(task, model)
        for bits in (3, 2):
            recipe = Recipe.load(f"w{bits}a16-autoround")
            learned = _score(task, _compiled(task, model, recipe, progress)) - whole
            solved = _score(task, _compiled(task, model, _instead(recipe, {"gptq": {}}), progress)) - whole
            bar = most if bits == 3 else solved / 2
            asked = f"<= +{most} nats" if bits == 3 else "at most half of what GPTQ loses"
            yield Figure(f"{name} W{bits}A16 by AutoRound", asked, f"{learned:+.4f} (GPTQ {solved:+.4f})",
                         learned <= bar)  # fmt: skip


def _instead(recipe: Recipe, step: dict[str, dict[str, int]]) -> Recipe:
    """With another pass in place of the training."""
    plain = recipe.to_json()
    return Recipe.load({**plain, "passes": [step if "recover" in p else p for p in plain["passes"]]})


def _compiled(task: Task, model: ir.Model, recipe: Recipe, progress: Progress) -> ir.Model:
    import graphpress as gp

    data = {k: v for k, v in task.data().items() if k != "labels"}
    return gp.compile(model, recipe, data, gate=False, prove=False, progress=progress)[0]


def _score(task: Task, model: ir.Model) -> float:
    from graphpress.backends import ort

    runner = ort.execute(model)
    return next(iter(task.scores(runner, runner).values()))
