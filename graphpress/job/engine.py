"""The backend package of a runtime: it has ``lower``, ``execute``, ``deploy`` and ``audit``."""

from __future__ import annotations

import importlib
from types import ModuleType

from graphpress.errors import Unsupported
from graphpress.target import Target


def of(target: Target) -> ModuleType:
    """The backend of a target.

    Raises:
        Unsupported: It needs torch, which is not installed.
    """
    return of_runtime(target.runtime)


def of_runtime(runtime: str) -> ModuleType:
    """The backend of a runtime: ``ort`` or ``fx``.

    Raises:
        Unsupported: It needs torch, which is not installed.
    """
    try:
        return importlib.import_module(f"graphpress.backends.{runtime}")
    except ModuleNotFoundError as e:
        if e.name != "torch":
            raise
        fix = "Run `pip install 'graphpress[torch]'`."
        raise Unsupported("torch is not installed", where="the torch backend", fix=fix) from e
