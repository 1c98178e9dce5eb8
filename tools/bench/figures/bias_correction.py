"""Bias correction (DFQ): ResNets and MobileNet with one scale a weight, uncorrected, by data, by learned statistics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphpress.backends import ort
from graphpress.recipe import Recipe
from graphpress.runner import Progress
from graphpress.tools.bench.figures.base import Figure
from graphpress.tools.bench.zoo import tasks

_MODELS = {"resnet20_bn": True, "resnet56_bn": True, "mobilenet_v1_0.5_160": False}  # whether statistics are left
_POINTS = 0.3


def measure(zoo: Path, progress: Progress) -> Iterator[Figure]:
    """Top-1 in per cent of recipe w8a8-cle, and of the same with 4-bit weights."""
    import graphpress as gp

    for name, statistics in _MODELS.items():
        (task,) = tasks(zoo, name)
        model, data = ir.load(task.file(zoo)), task.data()
        runner = ort.execute(model)
        whole = next(iter(task.scores(runner, runner).values()))
        for bits in (8, 4):
            found = {}
            for means in (None, "data", *(["batchnorm"] if statistics else [])):
                made = gp.compile(model, _recipe(bits, means), data, gate=False, prove=False, progress=progress)[0]
                run = ort.execute(made)
                found[means] = next(iter(task.scores(run, runner).values()))
            learned = f", by statistics {found['batchnorm']:.2f}" if statistics else ""
            yield Figure(
                f"{name} W{bits}A8, one scale a weight (w8a8-cle)", f"no more than {_POINTS} points worse by it",
                f"{found[None]:.2f} % without, by data {found['data']:.2f}{learned}",
                min(v for k, v in found.items() if k) >= found[None] - _POINTS, f"float {whole:.2f} %",
            )  # fmt: skip


def _recipe(bits: int, means: str | None) -> Recipe:
    """The recipe with weights of so many bits, its correction by ``means`` or not there."""
    plain: dict[str, Any] = Recipe.load("w8a8-cle").to_json()
    plain = json.loads(json.dumps(plain).replace('"weight": "int8"', f'"weight": "int{bits}"'))
    passes = [{"correct-biases": {"means": means}} if "correct-biases" in p else p for p in plain["passes"]]
    return Recipe.load({**plain, "passes": [p for p in passes if means or "correct-biases" not in p]})
