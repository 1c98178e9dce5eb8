"""Weights of four bits on signed squares (PowerQuant) against evenly spaced ones: accuracy and the size of the file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graphpress import compile, save
from graphpress.recipe import Recipe
from graphpress.runner import Progress, quiet
from graphpress.tools.bench.figures.base import Figure
from graphpress.tools.bench.file_runner import FileRunner
from graphpress.tools.bench.task import Task
from graphpress.tools.bench.zoo import tasks

MODELS = "resnet20,codelm"
RECIPES = ("w4a8", "w4a8-power")


def measure(zoo: Path, progress: Progress = quiet) -> Iterator[Figure]:
    """Rounded to nearest, and by GPTQ, which takes any format."""
    with tempfile.TemporaryDirectory(prefix="graphpress-") as folder:
        for task in tasks(zoo, MODELS):
            source = task.file(Path(folder))
            before = _headline(task, source, source)
            ways: dict[str, list[dict[str, Any]]] = {"to nearest": [], "by GPTQ": [{"gptq": {}}]}
            for way, added in ways.items():
                even, squares = (_made(task, source, name, added, Path(folder), progress) for name in RECIPES)
                scores = [_headline(task, source, path) for path in (even, squares)]
                size = squares.stat().st_size / even.stat().st_size
                yield Figure(
                    f"{task.name}: W4A8 on signed squares, {way}", "", f"{scores[1]:.4f} {_unit(task)}",
                    note=f"evenly spaced {scores[0]:.4f}, float {before:.4f}; its file is {size - 1:+.1%} in size",
                )  # fmt: skip


def _made(task: Task, source: Path, name: str, added: list[dict[str, Any]], folder: Path, progress: Progress) -> Path:
    """The file of a shipped recipe, with more passes behind ``quantize``."""
    recipe = Recipe.load(name).to_json()
    passes = [p if isinstance(p, dict) else {p: {}} for p in recipe["passes"]]
    at = next(i for i, p in enumerate(passes) if "quantize" in p) + 1
    changed = recipe | {"passes": [*passes[:at], *added, *passes[at:]]}
    model, _ = compile(source, changed, task.data(), gate=False, prove=False, progress=progress)
    save(model, path := folder / f"{task.name}.{name}.{len(added)}.onnx")
    return path


def _headline(task: Task, source: Path, path: Path) -> float:
    return next(iter(task.scores(FileRunner(path), FileRunner(source)).values()))


def _unit(task: Task) -> str:
    return "nats per byte" if task.kind == "language" else "% top-1"
