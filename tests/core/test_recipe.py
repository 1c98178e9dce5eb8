"""Recipes resolve to typed passes, come back equal from their own dump, and refuse with the nearest name."""

from pathlib import Path

import pytest

from graphpress import catalog, shipped
from graphpress.errors import RecipeError
from graphpress.recipe import Recipe, make_pass, parse_passes


@pytest.mark.parametrize("name", sorted(shipped.recipes()))
def test_shipped_recipes_survive_their_dump(name: str, tmp_path: Path) -> None:
    recipe = Recipe.load(name)
    path = tmp_path / "r.yaml"
    path.write_text(recipe.dump())
    assert Recipe.load(path) == recipe and recipe.name == name and recipe.summary


@pytest.mark.parametrize("name", sorted(catalog.passes()))
def test_every_pass_has_a_docstring_and_json_options(name: str) -> None:
    cls = catalog.passes()[name]
    assert (cls.__doc__ or "").strip() and cls.name == name


BAD = [
    ("passes: [fold-constant]", "pass 'fold-constant': there is no such pass. Did you mean 'fold-constants'"),
    ("passes: [{quantize: {wieght: int8}}]", "no option 'wieght'. Did you mean 'weight'"),
    ("passes: [{quantize: {group_size: many}}]", "option 'group_size'"),
    ("passes: []", "a list of at least one pass"),
    ("- a", "a recipe is a mapping"),
    ("passes: [fold-constants]\ngates: {}", "unknown key 'gates'. Did you mean 'gate'"),
    ("passes: [fold-constants]\ngate: {min_snr: 3}", "no option 'min_snr'. Did you mean 'min_sqnr'"),
    ("passes: [fold-constants]\ngate: {samples: few}", "option 'samples'"),
    ("passes: [[fold-constants]]", "neither a pass name"),
    ("passes: [{recipe: cleen}]", "includes 'cleen', which is no shipped recipe. Did you mean 'clean'"),
    ("passes: {", "not valid YAML"),
    ("passes: !!python/object/apply:os.system [true]", "not valid YAML"),
]


@pytest.mark.parametrize(("text", "says"), BAD)
def test_bad_recipes_say_what_and_where(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"bad\.yaml") as e:
        Recipe.load(path)
    assert says in str(e.value)


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'w8a8'"):
        Recipe.load("w8a88")


def test_options_are_set_from_text() -> None:
    recipe = Recipe.load("w8a8").set(["quantize.observer=minmax", "gate.min_sqnr=3"])
    assert recipe.gate.min_sqnr == 3
    assert next(p for p in recipe.passes if p.name == "quantize").options()["observer"] == "minmax"
    with pytest.raises(RecipeError, match=r"no pass .quantise. in it\. Did you mean .quantize."):
        recipe.set(["quantise.observer=mse"])
    with pytest.raises(RecipeError, match=r"not PASS\.OPTION=VALUE"):
        recipe.set(["observer"])


def test_the_short_form_equals_the_long_one() -> None:
    made = parse_passes("fold-constants, quantize{mode=weight,weight=int4,ignore=['a,b','re:c{2}']},remove-dead")
    assert [p.name for p in made] == ["fold-constants", "quantize", "remove-dead"]
    assert made[1] == make_pass("quantize", {"mode": "weight", "weight": "int4", "ignore": ["a,b", "re:c{2}"]})
    for bad in ("quantize{mode=weight", "quantize}", "quantize{mode}", "nope"):
        with pytest.raises(RecipeError):
            parse_passes(bad)
