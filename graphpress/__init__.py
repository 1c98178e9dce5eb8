"""graphpress: a compiler for model compression. Names are imported when they are first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphpress.base import Context as Context
    from graphpress.base import Pass as Pass
    from graphpress.base import PassReport as PassReport
    from graphpress.calibration import CalibrationData as CalibrationData
    from graphpress.compiler import audit as audit
    from graphpress.compiler import compile as compile
    from graphpress.compiler import load as load
    from graphpress.compiler import lower as lower
    from graphpress.compiler import save as save
    from graphpress.compiler import to_torch as to_torch
    from graphpress.compiler import trace as trace
    from graphpress.errors import GateError as GateError
    from graphpress.errors import GraphpressError as GraphpressError
    from graphpress.inspection import diff as diff
    from graphpress.inspection import inspect as inspect
    from graphpress.pipeline import Pipeline as Pipeline
    from graphpress.recipe import Recipe as Recipe
    from graphpress.report import Report as Report
    from graphpress.target import Target as Target
    from graphpress.types import Granularity as Granularity
    from graphpress.types import Plan as Plan
    from graphpress.types import Scheme as Scheme
    from graphpress.types import Site as Site

_HOME = {
    "base": ("Context", "Pass", "PassReport"),
    "calibration": ("CalibrationData",),
    "compiler": ("audit", "compile", "load", "lower", "save", "to_torch", "trace"),
    "errors": ("GateError", "GraphpressError"),
    "inspection": ("diff", "inspect"),
    "pipeline": ("Pipeline",),
    "recipe": ("Recipe",),
    "report": ("Report",),
    "target": ("Target",),
    "types": ("Granularity", "Plan", "Scheme", "Site"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'graphpress' has no attribute {name!r}")
    return getattr(importlib.import_module(f"graphpress.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
