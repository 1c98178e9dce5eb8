"""What options a dataclass has: what each takes, its default, what it means. One reader of fields and docstrings."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pydantic

from graphpress.typed import schema


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: Of the field.
        takes: What it may be, in words: choices with bars between.
        default: As Python writes it; ``required`` where there is none.
        meaning: Of the docstring.
    """

    name: str
    takes: str
    default: str
    meaning: str


def options_of(cls: type[Any]) -> list[Option]:
    """The options of a dataclass in order; none of another class."""
    fields = (
        [f for f in dataclasses.fields(cls) if f.init and f.name != "data"] if dataclasses.is_dataclass(cls) else []
    )
    said = {name: meaning for base in reversed(cls.__mro__) for name, meaning in _meanings(parts(base)[1])}
    known = _known(cls) if fields else {}
    return [Option(f.name, known.get(f.name) or str(f.type), _default(f), said.get(f.name, "")) for f in fields]


def _known(cls: type[Any]) -> dict[str, str]:
    """What each option takes, where text can give it."""
    try:
        found = schema(cls)
    except pydantic.PydanticUserError:  # fields of types of its own
        return {}
    return {name: takes(told, found.get("$defs", {})) for name, told in found.get("properties", {}).items()}


def takes(told: Mapping[str, Any], shared: Mapping[str, Any]) -> str:
    """A JSON schema in words.

    Args:
        told: Of one value.
        shared: What it may refer to by name.
    """
    if "$ref" in told:
        return takes(shared[told["$ref"].rpartition("/")[2]], shared)
    if "examples" in told:
        return " | ".join(map(str, told["examples"]))
    if "anyOf" in told:
        return " | ".join(dict.fromkeys(takes(one, shared) for one in told["anyOf"]))
    if "enum" in told or "const" in told:
        return " | ".join(str(v) for v in told.get("enum", [told.get("const")]))
    if told.get("type") == "array":
        items = told.get("items") or {}
        return f"list of {takes(items, shared)}" if items else "list"
    names = {"boolean": "true | false", "integer": "whole number", "number": "number", "string": "text"}
    return names.get(told.get("type", ""), {"object": "mapping", "null": "null"}.get(told.get("type", ""), "anything"))


def parts(cls: type[Any]) -> tuple[str, str]:
    """What a docstring says of the class, and of its fields."""
    about, _, meanings = inspect.cleandoc(cls.__doc__ or "").partition("\n\nAttributes:\n")
    return about, meanings


def _meanings(text: str) -> Iterator[tuple[str, str]]:
    """(option, its meaning) of the section of a docstring; several options may share one."""
    entries: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith("    ") and line[4:5] not in ("", " "):
            entries.append([line.strip()])
        elif entries:
            entries[-1].append(line.strip())
    for entry in entries:
        names, _, meaning = " ".join(entry).partition(":")
        yield from ((name.strip(), meaning.strip()) for name in names.split(","))


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    return repr(field.default_factory()) if field.default_factory is not dataclasses.MISSING else "required"
