"""All architectures of the bench."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from graphpress.errors import BadRequest, nearest
from graphpress.tools.bench.architectures import audio, diffusion, text, vision
from graphpress.tools.bench.architectures.architecture import Architecture


def listed(pattern: str = "*") -> list[Architecture]:
    """Those whose name or family matches one of the comma-separated globs.

    Raises:
        BadRequest: One matches nothing.
    """
    every = [a for room in (text, audio, vision, diffusion) for a in room.architectures()]
    found: list[Architecture] = []
    for glob in pattern.split(","):
        matching = [a for a in every if fnmatchcase(a.name, glob) or fnmatchcase(a.family, glob)]
        if not matching:
            raise BadRequest(
                "no architecture has this name", where=f"--only {glob!r}", fix=nearest(glob, _names(every))
            )
        found += [a for a in matching if a not in found]
    return sorted(found, key=every.index)


def _names(every: Sequence[Architecture]) -> list[str]:
    return list(dict.fromkeys([*(a.name for a in every), *(a.family for a in every)]))
