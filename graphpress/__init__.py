"""graphpress: a compiler for model compression. Names are imported when they are first used."""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {"Pipeline": "graphpress.pipeline"}

__all__ = ["Pipeline"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'graphpress' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
