"""Learned rounding: 2 and 3 bits of a language model by AutoRound, 4 bits and 4-bit activations of a CNN by GENIE-M."""

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
_POINTS = 2.5


def measure(zoo: Path, progress: Progress) -> Iterator[Figure]:
    """Each recipe beside the same with GPTQ, or with rounding to nearest, in place of what it learns."""
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
    recipe = Recipe.load("w4a4-genie")
    for name, title in (("resnet20", "ResNet-20"), ("resnet56", "ResNet-56")):
        (task,) = tasks(zoo, name)
        model = ir.load(task.file(zoo))
        whole = _score(task, model)
        learned = _score(task, _compiled(task, model, recipe, progress))
        nearest = _score(task, _compiled(task, model, _instead(recipe, None), progress))
        yield Figure(f"{title} W4A4 by GENIE-M", f"within {_POINTS} points of float",
                     f"{learned:.2f} % (float {whole:.2f}, to nearest {nearest:.2f})",
                     whole - learned <= _POINTS)  # fmt: skip


def _instead(recipe: Recipe, step: dict[str, dict[str, int]] | None) -> Recipe:
    """With another pass, or none, in place of the training."""
    plain = recipe.to_json()
    passes = [step if "recover" in p else p for p in plain["passes"]]
    return Recipe.load({**plain, "passes": [p for p in passes if p is not None]})


def _compiled(task: Task, model: ir.Model, recipe: Recipe, progress: Progress) -> ir.Model:
    import graphpress as gp

    data = {k: v for k, v in task.data().items() if k != "labels"}
    return gp.compile(model, recipe, data, gate=False, prove=False, progress=progress)[0]


def _score(task: Task, model: ir.Model) -> float:
    from graphpress.backends import ort

    runner = ort.execute(model)
    return next(iter(task.scores(runner, runner).values()))
