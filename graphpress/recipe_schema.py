"""The JSON schema of recipes: what an editor completes and checks while one is written."""

from __future__ import annotations

from typing import Any

from graphpress import catalog, shipped
from graphpress.job.bars import Gate
from graphpress.observe.sources.kinds import kinds
from graphpress.typed import schema

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema() -> dict[str, Any]:
    """Of a whole recipe, every pass with its options, choices and defaults."""
    shared: dict[str, Any] = {}
    passes = {name: _inside(cls, shared) for name, cls in sorted(catalog.passes().items())}
    known = {"enum": sorted(shipped.recipes())}
    own = {r"^[\w.]+:[\w.]+$": {"type": ["object", "null"]}}  # module:Class
    options = {"type": "object", "properties": passes, "patternProperties": own, "additionalProperties": False}
    step = {**options, "properties": {**passes, "recipe": known}, "minProperties": 1, "maxProperties": 1}
    named = {"anyOf": [{"enum": list(passes)}, {"type": "string", "pattern": ":"}]}
    sources = {name: _inside(cls, shared, left_out="path") for name, cls in sorted(kinds().items())}
    data = {
        "type": "object", "properties": {"path": {"type": "string"}, **sources}, "required": ["path"],
        "additionalProperties": False,
    }  # fmt: skip
    steps = {"type": "array", "minItems": 1, "items": {"anyOf": [named, step]}}
    return {
        "$schema": _DRAFT,
        "title": "A recipe of graphpress",
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "summary": {"type": "string"},
            "base": {"type": "string", "description": "A shipped recipe or a file: this one changes options of it."},
            "passes": {"anyOf": [steps, {**options, "description": "With base: options to change."}]},
            "gate": _inside(Gate, shared),
            "data": {"anyOf": [{"type": "string"}, data]},
        },
        "anyOf": [{"required": ["passes"]}, {"required": ["base"]}],
        "additionalProperties": False,
        "$defs": shared,
    }


def _inside(cls: Any, shared: dict[str, Any], left_out: str = "") -> dict[str, Any]:
    """The schema of a dataclass's options; what it refers to is put into ``shared``."""
    found = dict(schema(cls))
    shared |= found.pop("$defs", {})
    found["properties"] = {n: told for n, told in found.get("properties", {}).items() if n != left_out}
    found["required"] = [n for n in found.get("required", []) if n != left_out]
    found |= {"type": ["object", "null"], "additionalProperties": False}
    return found
