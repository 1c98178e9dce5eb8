"""What ``module:Name`` names in a user's own module, of the working folder or installed; errors are one line."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any

from graphpress.errors import RecipeError, nearest


def imported(name: str, place: str) -> Any:
    """What ``module:Name`` names; ``Name`` may lie in a class.

    Raises:
        RecipeError: There is no such module, it fails while it is loaded, or nothing of that name is in it.
    """
    module_name, _, attribute = name.partition(":")
    module = thing = _module(module_name, place)
    for part in attribute.split("."):
        if not part or not hasattr(thing, part):
            raise RecipeError(f"{module_name} has no {attribute!r}", where=place, fix=nearest(attribute, _own(module)))
        thing = getattr(thing, part)
    return thing


def _own(module: ModuleType) -> Collection[str]:
    """Names that a module defines, or else all that it has."""
    own = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__]
    return own or vars(module)


def _module(name: str, place: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        fix = "Name a module of the working folder, without .py, and what is in it: metrics:accuracy."
        raise RecipeError(f"{name!r} is no name of a module", where=place, fix=fix)
    here = str(Path.cwd())
    if here not in sys.path:  # behind all that is installed, and for good: the module may import its neighbours later
        sys.path.append(here)
    importlib.invalidate_caches()  # it may have been written a moment ago
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as e:  # whatever a user's module does while it is loaded
        if isinstance(e, ModuleNotFoundError) and e.name is not None and f"{name}.".startswith(f"{e.name}."):
            fix = _nearby(name) or "Put its folder on PYTHONPATH, or run beside it."
            raise RecipeError(f"there is no module {name!r}", where=place, fix=fix) from e
        raise RecipeError(f"{name} fails{failure(e)}", where=place) from e


def _nearby(name: str) -> str:
    """An offer, where a file of the working folder has almost the name."""
    offer = nearest(name, (p.stem for p in Path().glob("*.py")))
    return offer if offer.startswith("Did") else ""


def failure(e: BaseException) -> str:
    """`` at file:line: Type: what it says``, of what went wrong in a user's module."""
    return f"{_where(e)}: {_said(e)}"


def _said(e: BaseException) -> str:
    what = e.msg if isinstance(e, SyntaxError) else str(e)
    return " ".join(f"{type(e).__name__}: {what}".split())


def _where(e: BaseException) -> str:
    """`` at file:line`` of the last line that was reached outside of Python's own import."""
    if isinstance(e, SyntaxError) and e.filename:
        return f" at {_short(e.filename)}:{e.lineno}"
    frames = [f for f in traceback.extract_tb(e.__traceback__) if not f.filename.startswith("<frozen")]
    outside = [f for f in frames if f.filename not in (__file__, importlib.__file__)]
    return f" at {_short(outside[-1].filename)}:{outside[-1].lineno}" if outside else ""


def _short(path: str) -> str:
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
