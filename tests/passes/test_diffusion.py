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
    [
        ("dit", "w4a8-viditq", 0.003), ("unet", "w4a8-viditq", 0.008),
        ("dit", "w4a4-svdquant", 0.02), ("unet", "w4a4-svdquant", 0.03),
    ],
)  # fmt: skip
def test_a_recipe_holds_its_bar(zoo: Path, name: str, recipe: str, bar: float) -> None:
    model = traced(zoo, name)
    after, _ = gp.compile(model, recipe, data=digits(zoo, name, 128, 5), gate=False, prove=False)
    before, quantized = (reference.execute(m) for m in (model, after))
    assert 0 < error(before, quantized, digits(zoo, name, 64, 777)) <= bar


@pytest.mark.slow
def test_most_of_what_8_bits_lose_is_the_rounding_of_the_input(zoo: Path) -> None:
    """The bar of a U-Net with its convolutions in 8 bits; with the first and the last one rounded it is not held."""
    model, data, fresh = traced(zoo, "unet"), digits(zoo, "unet", 128, 5), digits(zoo, "unet", 64, 777)
    before, plain = reference.execute(model), gp.Recipe.load("w8a8")
    lost = []
    for ends in ("same", "float"):
        after, _ = gp.compile(model, plain.set([f"quantize.ends={ends}"]), data=data, gate=False, prove=False)
        lost.append(error(before, reference.execute(after), fresh))
    assert lost[1] <= 0.004 and lost[1] < lost[0] / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dit", "unet"])
def test_a_scale_for_each_range_of_steps_loses_less_than_one_for_all(zoo: Path, name: str) -> None:
    model, data, fresh = traced(zoo, name), digits(zoo, name, 128, 5), digits(zoo, name, 64, 777)
    before, plain, lost = reference.execute(model), gp.Recipe.load("w8a8"), []
    for steps in ("", "t=0,0.25,0.5,0.75,1"):
        recipe = plain.set([f"quantize.steps={steps}"] if steps else [])
        after, _ = gp.compile(model, recipe, data=data, gate=False, prove=False)
        lost.append(error(before, reference.execute(after), fresh))
    assert lost[1] <= 0.8 * lost[0]
