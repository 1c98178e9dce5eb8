"""What to calibrate on where there is no text, or more samples than one wants: own tokens, random, chosen images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphpress.recipe import Recipe
from graphpress.runner import Progress
from graphpress.tools.bench.figures.base import Figure
from graphpress.tools.bench.task import Task
from graphpress.tools.bench.zoo import tasks

_SEQUENCES, _LENGTH = 64, 64
_KEPT, _SEEDS = 32, 5


def measure(zoo: Path, progress: Progress) -> Iterator[Figure]:
    """Loss of a small language model by what it was calibrated on; accuracy of ResNet-20 on few images."""
    yield from _language(zoo, progress)
    yield from _images(zoo, progress)


def _language(zoo: Path, progress: Progress) -> Iterator[Figure]:
    import tempfile

    (task,) = tasks(zoo, "stories260K")
    with tempfile.TemporaryDirectory() as folder:
        model = ir.load(task.file(Path(folder)))
        float_nats = _score(task, model)
        text = {k: v[:_SEQUENCES, :_LENGTH] for k, v in task.data().items()}
        for name in ("w8a8", "w4a16-gptq"):
            lost = {}
            for how in ("text", "model", "random"):
                free = {"generate-tokens": {"samples": _SEQUENCES, "length": _LENGTH, "how": how}}
                recipe = Recipe.load(name) if how == "text" else _with(name, free)
                made = _compiled(model, recipe, text if how == "text" else None, progress)
                lost[how] = _score(task, made) - float_nats
            said = ", ".join(
                f"{w} {lost[h]:+.4f}" for h, w in (("text", "text"), ("model", "own"), ("random", "random"))
            )
            yield Figure(
                f"stories260K {name}: nats above float by calibration data", "own tokens no worse than random ones",
                said, lost["model"] <= lost["random"] + 1e-4, f"{_SEQUENCES} sequences of {_LENGTH} tokens",
            )  # fmt: skip


def _images(zoo: Path, progress: Progress) -> Iterator[Figure]:
    (task,) = tasks(zoo, "resnet20")
    model = ir.load(task.file(zoo))
    name = "w4a8"
    data = {k: v for k, v in task.data().items() if k != "labels"}
    (key,) = data
    rows: dict[str, list[float]] = {"chosen": [], "random": []}
    for seed in range(_SEEDS):
        drawn = np.random.default_rng(seed).choice(len(data[key]), _KEPT, replace=False)
        rows["random"].append(
            _score(task, _compiled(model, Recipe.load(name), {key: data[key][drawn]}, progress, seed))
        )
        recipe = _with(name, {"choose-samples": {"samples": _KEPT}})
        rows["chosen"].append(_score(task, _compiled(model, recipe, data, progress, seed)))
    whole = _score(task, _compiled(model, Recipe.load(name), data, progress))
    said = ", ".join(f"{k} {np.mean(v):.2f} % (lowest {min(v):.2f})" for k, v in rows.items())
    yield Figure(
        f"ResNet-20 {name} calibrated on {_KEPT} images", "", f"{said}; on all {whole:.2f} %", None, f"{_SEEDS} seeds"
    )


def _with(name: str, step: Mapping[str, Any]) -> Recipe:
    """A shipped recipe with a pass in front, behind what tidies."""
    recipe = Recipe.load(name).to_json()
    return Recipe.load({**recipe, "passes": [{"recipe": "clean"}, step, *recipe["passes"]]})


def _compiled(model: ir.Model, recipe: Recipe, data: Any, progress: Progress, seed: int = 0) -> ir.Model:
    import graphpress as gp

    return gp.compile(model, recipe, data, gate=False, prove=False, progress=progress, seed=seed)[0]


def _score(task: Task, model: ir.Model) -> float:
    from graphpress.backends import ort

    runner = ort.execute(model)
    return next(iter(task.scores(runner, runner).values()))
