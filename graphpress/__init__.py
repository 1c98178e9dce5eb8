"""graphpress: a compiler for model compression. Names are imported when they are first used."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphpress.context import Context as Context
    from graphpress.contracts import Pass as Pass
    from graphpress.contracts import PassReport as PassReport
    from graphpress.errors import GateError as GateError
    from graphpress.errors import GraphpressError as GraphpressError
    from graphpress.job.compile import compile as compile
    from graphpress.job.job import Compiled as Compiled
    from graphpress.job.job import Job as Job
    from graphpress.job.models import audit as audit
    from graphpress.job.models import load as load
    from graphpress.job.models import lower as lower
    from graphpress.job.models import save as save
    from graphpress.job.models import trace as trace
    from graphpress.job.step_ranges import RangedModel as RangedModel
    from graphpress.job.step_ranges import RangedPlan as RangedPlan
    from graphpress.job.step_ranges import compile_ranges as compile_ranges
    from graphpress.job.training import from_torch as from_torch
    from graphpress.job.training import parameter_groups as parameter_groups
    from graphpress.job.training import to_torch as to_torch
    from graphpress.observe.data import CalibrationData as CalibrationData
    from graphpress.observe.sources.audio import Audio as Audio
    from graphpress.observe.sources.images import Images as Images
    from graphpress.observe.sources.taken import calibration_data as calibration_data
    from graphpress.observe.sources.text import Text as Text
    from graphpress.pipeline import Pipeline as Pipeline
    from graphpress.recipe import Recipe as Recipe
    from graphpress.report.inspection import diff as diff
    from graphpress.report.inspection import inspect as inspect
    from graphpress.report.report import Report as Report
    from graphpress.report.view.view import view as view
    from graphpress.target import Target as Target
    from graphpress.types import Granularity as Granularity
    from graphpress.types import Plan as Plan
    from graphpress.types import Scheme as Scheme
    from graphpress.types import Site as Site

_HOME = {
    "context": ("Context",),
    "contracts": ("Pass", "PassReport"),
    "errors": ("GateError", "GraphpressError"),
    "job.compile": ("compile",),
    "job.job": ("Compiled", "Job"),
    "job.models": ("audit", "load", "lower", "save", "trace"),
    "job.step_ranges": ("RangedModel", "RangedPlan", "compile_ranges"),
    "job.training": ("from_torch", "parameter_groups", "to_torch"),
    "observe.data": ("CalibrationData",),
    "observe.sources.audio": ("Audio",),
    "observe.sources.images": ("Images",),
    "observe.sources.taken": ("calibration_data",),
    "observe.sources.text": ("Text",),
    "pipeline": ("Pipeline",),
    "recipe": ("Recipe",),
    "report.inspection": ("diff", "inspect"),
    "report.report": ("Report",),
    "report.view.view": ("view",),
    "target": ("Target",),
    "types": ("Granularity", "Plan", "Scheme", "Site"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent until a program asks for records

__all__ = sorted(_MODULE)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'graphpress' has no attribute {name!r}")
    return getattr(importlib.import_module(f"graphpress.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
