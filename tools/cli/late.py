"""Modules of others that a command may never need, imported when something of them is used."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any


class _StandIn(ModuleType):
    """Stands for a module where it was imported as a whole; what is asked of it, the module itself answers."""

    def __getattr__(self, name: str) -> Any:
        _leave(self)
        return getattr(importlib.import_module(self.__name__), name)


@contextlib.contextmanager
def late(*names: str) -> Iterator[None]:
    """Let ``import NAME`` in the block give a stand-in; behind it, and for whoever was not in it, nothing is different.

    For modules that those who are imported in the block take as wholes (``import sympy``) and use in functions only.
    """
    made = [_StandIn(name) for name in names if name not in sys.modules]
    sys.modules.update({stand_in.__name__: stand_in for stand_in in made})
    try:
        yield
    finally:
        for stand_in in made:
            _leave(stand_in)


def _leave(stand_in: _StandIn) -> None:
    if sys.modules.get(stand_in.__name__) is stand_in:
        del sys.modules[stand_in.__name__]


def import_onnx_ir() -> None:
    """Import it without sympy, which takes half a second and is there for arithmetic with symbolic sizes alone."""
    with late("sympy", "onnx_ir._symbolic_shapes"):
        importlib.import_module("onnx_ir")
