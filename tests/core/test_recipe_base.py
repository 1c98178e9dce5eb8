"""Recipes that change another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import graphpress as gp
from graphpress.errors import RecipeError


def options(recipe: gp.Recipe, name: str) -> dict[str, Any]:
    return next(p.options() for p in recipe.passes if p.name == name)


def test_a_recipe_changes_options_of_its_base_and_nothing_else() -> None:
    base = gp.Recipe.load("w8a8")
    made = gp.Recipe.load(
        {"base": "w8a8", "passes": {"quantize": {"observer": "percentile"}}, "gate": {"min_sqnr": 33}}
    )
    assert options(made, "quantize") == options(base, "quantize") | {"observer": "percentile"}
    assert [p for p in made.passes if p.name != "quantize"] == [p for p in base.passes if p.name != "quantize"]
    assert made.gate.min_sqnr == 33
    assert made.gate.min_cosine == base.gate.min_cosine
    assert (made.name, made.summary) == ("w8a8, changed", base.summary)
    assert made.passes == base.set(["quantize.observer=percentile"]).passes
    assert gp.Recipe.load(made.to_json()) == made  # resolved: the base is no longer named
    assert gp.Recipe.load({"base": "w8a8", "name": "mine"}).passes == base.passes


def test_files_stand_on_files_beside_them(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "one.yaml").write_text("base: w4a16\ngate: {min_sqnr: 5}\ndata: a.npz\n")
    (tmp_path / "two.yaml").write_text("base: deep/one.yaml\npasses:\n  quantize: {group_size: 32}\n")
    made = gp.Recipe.load(tmp_path / "two.yaml")
    assert options(made, "quantize")["group_size"] == 32
    assert options(made, "quantize")["weight"] == "int4"
    assert (made.gate.min_sqnr, made.data) == (5, "a.npz")


def test_bases_that_go_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("base: two.yaml")
    (tmp_path / "two.yaml").write_text("base: one.yaml")
    with pytest.raises(RecipeError, match=r"one\.yaml: its bases go in a circle. Name a shipped recipe"):
        gp.Recipe.load(tmp_path / "one.yaml")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"base": "w8a9"}, "recipe 'w8a9': there is no such recipe or file. Did you mean 'w8a8'"),
    ({"base": 8}, "base is 8, no name or file"),
    ({"base": "w8a8", "passes": ["clean"]}, "with a base, 'passes' is a mapping: pass -> options to change"),
    ({"base": "w8a8", "passes": {"quantise": {}}}, "no pass 'quantise' in it. Did you mean 'quantize'"),
    ({"base": "w8a8", "passes": {"quantize": {"obsever": "mse"}}}, "no option 'obsever'. Did you mean 'observer'"),
    ({"base": "w8a8", "passes": {"quantize": None}}, "'quantize' must have a mapping of options"),
    ({"base": "w8a8", "gate": {"min_snr": 3}}, "the gate has no option 'min_snr'"),
]


@pytest.mark.parametrize(("told", "message"), BAD)
def test_changes_that_are_none_are_refused(told: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        gp.Recipe.load(told)
