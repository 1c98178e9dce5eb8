"""Data on the command line: ``--data PATH`` and, for files that are no arrays, how they become arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from graphpress.errors import BadRequest
from graphpress.observe.sources import said
from graphpress.observe.sources.source import Source
from graphpress.recipe import parse_options

Given: TypeAlias = Path | Source | None


def data_of(data: Path | None, kinds: Mapping[str, str | None]) -> Given:
    """What ``--data`` and at most one of ``--images``, ``--text``, ``--audio`` say.

    Raises:
        BadRequest: More than one, one without ``--data``, or no such option.
        RecipeError: The options are not ``option=value,option=value``.
    """
    asked = {kind: text for kind, text in kinds.items() if text is not None}
    if not asked:
        return data
    if len(asked) > 1:
        raise BadRequest("exclude each other", where=" and ".join(f"--{kind}" for kind in asked), fix="Give one.")
    ((kind, text),) = asked.items()
    if data is None:
        raise BadRequest("says how files become samples, not which", where=f"--{kind}", fix="Give --data as well.")
    return said.made(kind, data, parse_options(text, f"--{kind}"), f"--{kind}")


def path_of(data: Given) -> Path | None:
    """The file or folder that is read."""
    return Path(data.path) if isinstance(data, Source) else data
