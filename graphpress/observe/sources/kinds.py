"""Which kinds of files there are: every ``Source`` of this folder, by its name."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from pathlib import Path

from graphpress.errors import CalibrationError
from graphpress.observe.sources.source import Source, found

_HERE = "graphpress.observe.sources"


@functools.cache
def kinds() -> dict[str, type[Source]]:
    """Each by its name."""
    known: dict[str, type[Source]] = {}
    for info in pkgutil.iter_modules(importlib.import_module(_HERE).__path__):
        module = importlib.import_module(f"{_HERE}.{info.name}")
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, Source) and not inspect.isabstract(cls):
                known[cls.name] = cls
    return known


def kind_of(path: Path) -> type[Source] | None:
    """The kind that the files of a path are of; None where there is none.

    Raises:
        CalibrationError: They are of several kinds.
    """
    there = [cls for cls in kinds().values() if any(f.suffix.lower() in cls.endings for f in found(path, cls.endings))]
    if len(there) > 1:
        names = " and ".join(cls.name for cls in there)
        fix = f"Say which are meant: {' or '.join(f'--{cls.name}' for cls in there)}."
        raise CalibrationError(f"holds {names}", where=str(path), fix=fix)
    return there[0] if there else None
