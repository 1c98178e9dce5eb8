"""What every pass is: a frozen dataclass whose fields are its options, run on a model with a context and a report."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeAlias, cast

import onnx_ir as ir

from graphpress.context import Context
from graphpress.errors import BadRequest, nearest
from graphpress.graph.selectors import exactly
from graphpress.types import Numerics, Plan, Stage

Budget: TypeAlias = float | str | None  # a share of the float model's (0.6x), or a figure of its own


@dataclass(frozen=True, order=True)
class Skip:
    """A place where a pass did not apply, and why: data, not a log line."""

    where: str
    why: str


@dataclass(frozen=True)
class Exhibit:
    """Something of a pass that is worth looking at; the page draws it by its kind (``report.exhibits``).

    Attributes:
        kind: ``scatter``, ``levels`` or ``table``.
        name: What it shows: the heading.
        data: JSON-able; ``report.exhibits`` says which keys each kind has, and others may stand beside them.
    """

    kind: str
    name: str
    data: dict[str, Any]

    def __post_init__(self) -> None:
        if self.kind not in EXHIBITS:
            raise BadRequest(f"unknown kind {self.kind!r}", where="exhibit", fix=nearest(self.kind, EXHIBITS))


EXHIBITS = ("scatter", "levels", "table")


@dataclass
class PassReport:
    """What one pass did.

    ``changed`` counts rewrites, ``metrics`` are figures worth showing, ``plan`` is what it decided, ``warnings`` are
    places whose scales are degenerate, ``histograms`` (by site) what calibration saw and kept, ``exhibits`` drawings,
    and ``handed`` what the passes after it find in their Context instead of what this one found: such as ``data``.
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
    exhibits: list[Exhibit] = field(default_factory=list)
    handed: dict[str, Any] = field(default_factory=dict)

    def skip(self, where: ir.Node | ir.Value | str, why: str) -> None:
        """Record that the pass does not apply at ``where``."""
        name = where if isinstance(where, str) else (where.name or "?")
        self.skips.append(Skip(name, why))


class Pass(ABC):
    """A rewrite of a graph. Subclasses are frozen dataclasses; every field is an option.

    The contract: a valid graph in, a valid graph out, anything allowed in between. The pipeline clones, verifies,
    checks numbers and times; a pass does none of that. ``needs`` lists the stages it accepts, ``gives`` is the stage
    after it (None: unchanged), ``hands`` says whether it may put something into its report's ``handed``.
    """

    name: ClassVar[str]
    numerics: ClassVar[Numerics] = Numerics.EXACT
    needs: ClassVar[tuple[Stage, ...]] = (Stage.FLOAT, Stage.QDQ)
    gives: ClassVar[Stage | None] = None
    hands: ClassVar[bool] = False

    def check(self, ctx: Context) -> None:
        """Refuse what cannot be met whatever the graph is. The pipeline asks every pass before it runs the first.

        Raises:
            BadRequest: Such as data or a metric that nobody gave: hours earlier than ``run`` would say so.
        """
        return

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


class HoldsBudgets(ABC):
    """What a pass is, besides, that searches within budgets of the whole compilation."""

    @abstractmethod
    def with_budgets(self, max_latency: Budget, max_size: Budget, max_drop: float | None) -> Pass:
        """The pass with these budgets in place of its own.

        Args:
            max_latency: Of one sample: a share of the float model's (``0.6x``), or milliseconds; None: no limit.
            max_size: Of all stored tensors: a share, or bytes; None: no limit.
            max_drop: Loss of the metric; None: no limit.
        """


class Overrides:
    """What a pass is, besides, that has the option ``sites``: it can store single sites in another way."""

    sites: Mapping[str, str]

    def overriding(self, sites: Mapping[str, str]) -> Self:
        """The pass with these too; what it was told before stays where they say nothing else.

        Args:
            sites: As the option has them.
        """
        return cast("Self", dataclasses.replace(cast("Any", self), sites={**self.sites, **sites}))


class Ignores:
    """What a pass is, besides, that has the option ``ignore``: it can leave nodes as they are."""

    ignore: tuple[str, ...]

    def without(self, names: Iterable[str]) -> Self:
        """The pass with these nodes left alone, whatever else it was told of them.

        Args:
            names: Of nodes, not selectors.
        """
        changed: Any = {"ignore": (*self.ignore, *map(exactly, names))}
        return cast("Self", dataclasses.replace(cast("Any", self), **changed))
