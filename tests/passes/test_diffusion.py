"""What recipes lose on the zoo's diffusion models: the squared error of the prediction on inputs that are new."""

from __future__ import annotations

from pathlib import Path

import pytest

import graphpress as gp
from graphpress.backends import reference
from graphpress.tools.bench.diffusion import digits, error, traced

pytest.importorskip("torch")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recipe", "bar"),
    [("dit", "w4a8-viditq", 0.003), ("unet", "w4a8-viditq", 0.008), ("dit", "w4a4-svdquant", 0.02)],
)
def test_a_recipe_holds_its_bar(zoo: Path, name: str, recipe: str, bar: float) -> None:
    model = traced(zoo, name)
    after, _ = gp.compile(model, recipe, data=digits(zoo, name, 128, 5), gate=False, prove=False)
    before, quantized = (reference.execute(m) for m in (model, after))
    assert 0 < error(before, quantized, digits(zoo, name, 64, 777)) <= bar
