"""Sources in words: the ``data:`` of a recipe, and options on the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphpress.errors import BadRequest, GraphpressError, RecipeError, nearest
from graphpress.observe import array_files
from graphpress.observe.sources.kinds import kinds
from graphpress.observe.sources.source import Source
from graphpress.typed import typed


def from_json(told: Any, where: str) -> str | Source | None:
    """A path, or a source: ``{path: photos, images: {mean: 0.5, std: 0.5}}``; None of None.

    Raises:
        RecipeError: Anything else; no such kind or option, or a value of the wrong type.
    """
    if told is None or isinstance(told, str):
        return told
    known = kinds()
    if not isinstance(told, Mapping) or not isinstance(told.get("path"), str):
        raise RecipeError("is neither a path nor a mapping with a path", where=where)
    others = [k for k in told if k != "path"]
    if unknown := [k for k in others if k not in known]:
        raise RecipeError(f"unknown key {unknown[0]!r}", where=where, fix=nearest(str(unknown[0]), ["path", *known]))
    if not others:
        return str(told["path"])
    if len(others) > 1:
        raise RecipeError(f"has {' and '.join(others)}", where=where, fix="Name one kind.")
    options = told[others[0]] or {}
    if not isinstance(options, Mapping):
        raise RecipeError(f"{others[0]} must be a mapping of options", where=where)
    return made(others[0], told["path"], options, f"{where}: {others[0]}", RecipeError)


def to_json(data: str | Source) -> Any:
    """The inverse; only options that were set."""
    if isinstance(data, str):
        return data
    fields = [f for f in dataclasses.fields(data) if f.name != "path" and getattr(data, f.name) != f.default]
    own = {f.name: getattr(data, f.name) for f in fields}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}
    return {"path": str(data.path), data.name: plain}


def made(
    kind: str, path: str | Path, options: Mapping[str, Any], where: str, error: type[GraphpressError] = BadRequest
) -> Source:
    """A source of this kind with options as text has them, each checked against its type.

    Raises:
        GraphpressError: ``error``: no such option (the nearest is given), or a value of the wrong type.
    """
    if "path" in options:
        raise error("the path stands elsewhere", where=where, fix="Give it as data.")
    source: Source = typed(kinds()[kind], {"path": str(path), **options}, where, error)
    return source


def samples(given: Any, own: str | Source | None) -> Any:
    """What is to be taken: what is given, else what a recipe says.

    Another path for a recipe's own source is read in its way, but arrays, which need none.
    """
    if given is None:
        return own
    if isinstance(given, str | Path) and isinstance(own, Source):
        path = Path(given)
        arrays = array_files.files(path) if path.is_dir() else path.suffix.lower() in array_files.ENDINGS
        return given if arrays else dataclasses.replace(own, path=path)
    return given
