"""Options in words, and the schema of recipes."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import yaml

from graphpress import catalog, shipped
from graphpress.observe.sources.kinds import kinds
from graphpress.options import Option, options_of
from graphpress.recipe import Recipe
from graphpress.recipe_schema import recipe_schema

SCHEMA = recipe_schema()


@dataclass
class Base:
    """Not shown.

    Attributes:
        one, two: Of the base.
    """

    one: int
    two: bool = False


@dataclass
class Own(Base):
    """Of everything something.

    Attributes:
        mode: What is done; on
            two lines.
    """

    mode: Literal["fast", "slow"] | None = "fast"
    many: tuple[Literal["a", "b"], ...] = ()
    table: dict[str, float] = field(default_factory=dict)
    hidden: int = field(default=3, init=False)


def test_options_say_what_they_take_and_mean() -> None:
    assert options_of(Own) == [
        Option("one", "whole number", "required", "Of the base."),
        Option("two", "true | false", "False", "Of the base."),
        Option("mode", "fast | slow | null", "'fast'", "What is done; on two lines."),
        Option("many", "list of a | b", "()", ""),
        Option("table", "mapping", "{}", ""),
    ]
    assert options_of(int) == []


@pytest.mark.parametrize("name", sorted(catalog.passes()))
def test_every_option_of_every_pass_has_a_meaning_and_takes_what_text_can_say(name: str) -> None:
    cls = catalog.passes()[name]
    found = options_of(cls)
    assert [o.name for o in found] == [f.name for f in dataclasses.fields(cls) if f.init]
    assert [o.name for o in found if not o.meaning or o.takes == "anything"] == []


TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "null": type(None), "integer": int, "number": (int, float)
}  # fmt: skip


def is_a(value: Any, kind: str) -> bool:
    if isinstance(value, bool) or kind == "boolean":
        return isinstance(value, bool) and kind == "boolean"
    return isinstance(value, TYPES[kind])


def fits(value: Any, told: Any) -> bool:
    """Whether a value fits a JSON schema: the part of draft 2020-12 that ours uses."""
    if isinstance(told, bool):
        return told
    if "$ref" in told:
        return fits(value, SCHEMA["$defs"][told["$ref"].removeprefix("#/$defs/")])
    kinds_ = told.get("type", [])
    kinds_ = [kinds_] if isinstance(kinds_, str) else kinds_
    return (
        ("anyOf" not in told or any(fits(value, one) for one in told["anyOf"]))
        and ("enum" not in told or value in told["enum"])
        and (not kinds_ or any(is_a(value, kind) for kind in kinds_))
        and (not isinstance(value, str) or bool(re.search(told.get("pattern", ""), value)))
        and (not isinstance(value, list) or fits_list(value, told))
        and (not isinstance(value, dict) or fits_object(value, told))
    )


def fits_list(value: list[Any], told: Any) -> bool:
    return len(value) >= told.get("minItems", 0) and all(fits(v, told.get("items", {})) for v in value)


def fits_object(value: dict[str, Any], told: Any) -> bool:
    known, patterns, rest = (told.get(k, {}) for k in ("properties", "patternProperties", "additionalProperties"))
    for key, own in value.items():
        inside = [known[key]] if key in known else [s for p, s in patterns.items() if re.search(p, key)]
        if not all(fits(own, s) for s in inside or [rest]):
            return False
    enough = all(n in value for n in told.get("required", []))
    return enough and told.get("minProperties", 0) <= len(value) <= told.get("maxProperties", len(value))


@pytest.mark.parametrize("name", sorted(shipped.recipes()))
def test_shipped_recipes_fit_the_schema_as_written_and_resolved(name: str) -> None:
    assert fits(yaml.safe_load(shipped.recipes()[name]), SCHEMA)
    assert fits(Recipe.load(name).to_json(), SCHEMA)


GOOD: list[Any] = [
    {"passes": [{"quantize": {"observer": "percentile:99.9", "quantizer": "power:exponent=0.5"}}]},
    {"base": "w8a8"},
    {"base": "w8a8", "passes": {"quantize": {"observer": "mse"}}, "gate": {"min_sqnr": 3}},
    {"passes": ["fold-batchnorm", "own_pass:Mine", {"own_pass:Mine": {"x": 1}}], "data": "a.npz"},
    {"passes": ["fold-batchnorm"], "data": {"path": "a", "images": {"mean": [0.5, 0.5, 0.5], "order": "bgr"}}},
]
BAD: list[Any] = [
    {"name": "x"},
    {"passes": []},
    {"passes": ["quantise"]},
    {"passes": [{"quantize": {"mode": "quick"}}]},
    {"passes": [{"quantize": {"modes": "static"}}]},
    {"passes": [{"quantize": {}, "clean": {}}]},
    {"passes": [{"recipe": "none"}]},
    {"base": "w8a8", "passes": {"quantise": {}}},
    {"base": "w8a8", "gates": {}},
    {"base": "w8a8", "gate": {"min_snr": 3}},
    {"base": "w8a8", "data": {"path": "a", "images": {"order": "rbg"}}},
    {"base": "w8a8", "data": {"images": {}}},
]


def test_the_schema_tells_recipes_from_others() -> None:
    assert [recipe for recipe in GOOD if not fits(recipe, SCHEMA)] == []
    assert [recipe for recipe in BAD if fits(recipe, SCHEMA)] == []


def test_the_schema_has_every_pass_and_source_with_its_options() -> None:
    passes = SCHEMA["properties"]["passes"]["anyOf"][1]["properties"]
    for name, cls in catalog.passes().items():
        assert list(passes[name]["properties"]) == [f.name for f in dataclasses.fields(cls) if f.init]
    sources = SCHEMA["properties"]["data"]["anyOf"][1]["properties"]
    assert set(sources) == {"path", *kinds()}
    assert passes["quantize"]["properties"]["mode"] == {
        "default": "static", "enum": ["static", "dynamic", "weight"], "title": "Mode", "type": "string"
    }  # fmt: skip


def test_options_that_take_a_name_of_what_is_there_show_all_of_them() -> None:
    shown = {(n, o.name): o.takes for n in ("quantize", "smooth", "recover") for o in options_of(catalog.passes()[n])}
    observers = "minmax | moving_average | percentile | mse | entropy"
    assert shown["quantize", "observer"] == shown["smooth", "observer"] == observers
    assert shown["quantize", "weight_observer"] == "minmax | mse | l4 | hqq"
    assert set(shown["quantize", "quantizer"].split(" | ")) == set(catalog.quantizers()) >= {"affine", "power"}
    *methods, options = shown["recover", "method"].split(" | ")
    assert set(methods) == set(catalog.methods()) and options == "mapping"
