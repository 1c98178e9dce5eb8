"""All methods: every module of this package that has ``METHODS``."""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil

from graphpress.errors import BadRequest, nearest
from graphpress.tools.bench import peers
from graphpress.tools.bench.peers.base import Method

_PARTS = ("__main__", "base", "child", "feeds", "llama", "methods", "rows")


def every() -> list[Method]:
    """Ours first, then by module."""
    modules = sorted(m.name for m in pkgutil.iter_modules(peers.__path__) if m.name not in _PARTS)
    found = [m for name in modules for m in importlib.import_module(f"{peers.__name__}.{name}").METHODS]
    return sorted(found, key=lambda m: not m.ours)


def key(method: Method) -> str:
    """What tells it from all others: name and scheme."""
    return f"{method.name} {method.scheme}"


def named(text: str) -> Method:
    """The method of that key.

    Raises:
        BadRequest: There is none.
    """
    found = {key(m): m for m in every()}
    if text not in found:
        raise BadRequest("is no method", where=f"--method {text!r}", fix=nearest(text, list(found)))
    return found[text]


def missing(method: Method) -> list[str]:
    """The distributions that it needs and that are not installed."""
    return [d for d in method.needs if not _installed(d)]


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
