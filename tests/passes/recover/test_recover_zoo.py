"""Recovery of real models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphpress.job.models import load
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.recover.engine import parameters
from graphpress.passes.recover.engine.blocks import blocks
from graphpress.passes.recover.recover import Recover
from graphpress.recipe import Recipe
from graphpress.tools.bench.classification import tasks
from tests import kit
from tests.passes.recovering import context, recover

torch = pytest.importorskip("torch")


@pytest.mark.slow
def test_resnet20_with_4_bit_weights_comes_back_block_by_block(zoo: Path) -> None:
    task = next(t for t in tasks(zoo) if t.name == "resnet20")
    images = task.data()
    name = next(k for k in images if k != "labels")
    clean = kit.apply(load(task.file(zoo)), *Recipe.load("clean").passes)[0]
    ctx = context(clean, {name: images[name][:64]})
    student = kit.apply(clean, Quantize(mode="weight", weight="int4"), ctx=ctx)[0]
    after, report = recover(student, Recover(mode="blocks", steps=8, lr=2e-4, batch_size=16), ctx)
    assert report.metrics["loss after"] < 0.5 * report.metrics["loss before"]  # type: ignore[operator]
    assert report.changed > 30
    wanted, before, found = (kit.run(m, {name: images[name][64:112]})["logits"] for m in (clean, student, after))
    assert np.square(found - wanted).mean() < 0.6 * np.square(before - wanted).mean()


def test_the_code_model_has_a_block_for_each_residual_branch(zoo: Path) -> None:
    clean = kit.apply(load(zoo / "llm/codelm/codelm.onnx"), *Recipe.load("clean").passes)[0]
    found = parameters.trainable_of(clean)
    assert len(found.matrices) == 1 + 6 * 7 + 1
    assert len(found.weights) == len(found.matrices) + 6 * 2 + 1
    cut, spread = blocks(clean, clean, found.weights)
    assert len(cut) == 1 + 6 * 2 + 1
    assert spread == {}
    assert sorted(n for block in cut for n in block.parameters) == sorted(found.weights)
