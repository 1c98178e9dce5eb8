"""What every pass is: a frozen dataclass whose fields are its options, run on a model with a context and a report."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import onnx_ir as ir

from graphpress.context import Context
from graphpress.observe.data import CalibrationData
from graphpress.types import Numerics, Plan, Stage


@dataclass(frozen=True, order=True)
class Skip:
    """A place where a pass did not apply, and why: data, not a log line."""

    where: str
    why: str


@dataclass
class PassReport:
    """What one pass did.

    ``changed`` counts rewrites, ``metrics`` are figures worth showing, ``plan`` is what it decided, ``warnings`` are
    places whose scales are degenerate, ``histograms`` (by site) what calibration saw and kept.
    """

    name: str = ""
    changed: int = 0
    skips: list[Skip] = field(default_factory=list)
    warnings: list[Skip] = field(default_factory=list)
    metrics: dict[str, float | str] = field(default_factory=dict)
    seconds: float = 0.0
    plan: Plan | None = None
    histograms: dict[str, dict[str, Any]] = field(default_factory=dict)
    checked: str = ""  # how the numbers were checked, or why they were not
    front: dict[str, Any] = field(default_factory=dict)  # cost against loss: the best predicted, and what was compiled
    learners: dict[str, dict[str, Any]] = field(default_factory=dict)  # by budget: how many learners tokens took
    data: CalibrationData | None = None  # what it made for the passes after it to calibrate on

    def skip(self, where: ir.Node | ir.Value | str, why: str) -> None:
        """Record that the pass does not apply at ``where``."""
        name = where if isinstance(where, str) else (where.name or "?")
        self.skips.append(Skip(name, why))


class Pass(ABC):
    """A rewrite of a graph. Subclasses are frozen dataclasses; every field is an option.

    The contract: a valid graph in, a valid graph out, anything allowed in between. The pipeline clones, verifies,
    checks numbers and times; a pass does none of that. ``needs`` lists the stages it accepts, ``gives`` is the stage
    after it (None: unchanged).
    """

    name: ClassVar[str]
    numerics: ClassVar[Numerics] = Numerics.EXACT
    needs: ClassVar[tuple[Stage, ...]] = (Stage.FLOAT, Stage.QDQ)
    gives: ClassVar[Stage | None] = None

    @abstractmethod
    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        """Rewrite ``model`` in place.

        Raises:
            GraphpressError: For bad input or a request that cannot be met at all; anything else is a Skip.
        """

    @property
    def reads(self) -> tuple[str, ...]:
        """Arrays of the calibration data, beside the model's inputs and ``labels``, that it makes use of."""
        return ()

    def options(self) -> dict[str, Any]:
        """The options with their values, JSON-able."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
