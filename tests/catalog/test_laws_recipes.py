"""What every shipped recipe and target keeps."""

from __future__ import annotations

import json

import pytest

from graphpress import catalog, shipped
from graphpress.errors import BadRequest, RecipeError
from graphpress.recipe import Recipe
from graphpress.target import Target


def _machines(data: dict) -> list[str]:
    """Those that the table names; a graphics card goes by the name of the host."""
    assert data["activation_dtype"]
    return sorted(data["activation_dtype"])


RECIPES, TARGETS = shipped.recipes(), shipped.targets()


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_is_made_of_passes_of_the_catalog_and_survives_json(name: str) -> None:
    recipe = Recipe.load(name)
    assert recipe.name == name and recipe.summary.endswith(".") and recipe.passes
    assert {p.name for p in recipe.passes} <= set(catalog.passes())
    assert Recipe.load(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_an_option_of_a_recipe_that_is_none_is_refused_by_name(name: str) -> None:
    recipe = Recipe.load(name)
    for step in recipe.passes:
        with pytest.raises(RecipeError, match=f"{step.name}.*no_such_option"):
            recipe.set([f"{step.name}.no_such_option=1"])
    with pytest.raises(RecipeError, match="no_such_option"):
        recipe.set(["gate.no_such_option=1"])


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_target_loads_for_each_machine_that_it_names(name: str) -> None:
    for isa in _machines(json.loads(TARGETS[name])):
        target = Target.load(name, isa)
        assert (target.name, target.isa) == (name, isa) and target.runtime
        assert Target.load(name, isa) == target
    with pytest.raises(BadRequest, match="'no such machine'"):
        Target.load(name, "no such machine")


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_every_capability_of_a_target_is_found_by_its_operator_and_mode(name: str) -> None:
    data = json.loads(TARGETS[name])
    for isa in _machines(data):
        target = Target.load(name, isa)
        for row in data["capabilities"]:
            assert row["kernel"] in {c.kernel for c in target.find(row["op"], row["mode"])}
        assert all(c.op and c.mode in ("static", "dynamic", "weight") for c in target.capabilities)
