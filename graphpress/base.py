"""What every pass is: a frozen dataclass whose fields are its options, run on a model with a context and a report."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

import numpy as np
import onnx_ir as ir

from graphpress.types import Numerics, Plan, Stage

if TYPE_CHECKING:
    from graphpress.calibration import Calibration, CalibrationData
    from graphpress.target import Target

Arrays: TypeAlias = Mapping[str, np.ndarray]

# Keys of metadata_props, the only channel between passes that survives a file.
BY = "graphpress.by"  # node: the pass that made it
ORIGIN = "graphpress.from"  # node: name of the node it was made for
SOURCE = "graphpress.source"  # of an initializer, as JSON: the torch parameter it was computed from, and how
SCALED = "scale"  # in SOURCE, of a parameter into which a pass has folded something
ATEN = "graphpress.aten"  # of a node that is all of one torch operator, and means a little less or more: its name
UNUSED = "graphpress.unused"  # of a model, as JSON: torch state that its graph does not read
ROLE = "graphpress.role"  # likewise: parameter, buffer, or temporary, which a state dict does not have
OPTION = "graphpress.option"  # of an input with a default: what callers may choose by it, such as a budget
SCOPE = "graphpress.scope"  # node: module path in the source program
STAGE = "graphpress.stage"  # model: its Stage
TARGET = "graphpress.target"  # model: the target it was lowered for
SCHEME = "graphpress.scheme"  # node: str of the schemes applied to it, for reports
SPARSITY = "graphpress.sparsity"  # node: the pattern n:m that its weight keeps, such as 2:4
PARAMETERS = "graphpress.parameters"  # in the meta of a torch module: initializer -> (its path, how it is kept there)


class Runner(Protocol):
    """An executable model: named arrays in, named arrays out."""

    @property
    def input_names(self) -> Sequence[str]: ...

    @property
    def output_names(self) -> Sequence[str]: ...

    def __call__(self, feeds: Arrays) -> dict[str, np.ndarray]: ...


class Executor(Protocol):
    """Builds a Runner. ``outputs`` asks for these values (any of the main graph) instead of the graph outputs."""

    def __call__(self, model: ir.Model, outputs: Sequence[str] | None = None) -> Runner: ...


class Progress(Protocol):
    """Wraps an iterable and shows how far it has come."""

    def __call__(self, items: Iterable[Any], label: str, total: int | None = None) -> Iterable[Any]: ...


def quiet(items: Iterable[Any], label: str, total: int | None = None) -> Iterable[Any]:
    """The Progress that shows nothing."""
    return items


@dataclass(frozen=True)
class Context:
    """Everything a run may depend on beside the model; nothing is global.

    Attributes:
        target: Where the result will run; its capabilities steer decisions.
        data: Calibration data, or None.
        run: Executes a model fast, on one thread for each run (calibration runs several at a time); None where nothing
            may be executed.
        oracle: Executes a model without any runtime optimisation: the reference semantics.
        seed: Seed of everything random.
        progress: Shows progress of long loops.
        calibrate: Stands in for ``calibration.collect``, with the same arguments.
        differentiate: Builds a torch module of a model that passes gradients (``backends.fx.build``, with the same
            arguments); None where torch may not be used. Raises Unsupported where torch is not installed.
        deploy: Lowers a portable model for the target and gives a runner of it there, on as many threads as users have.
        evaluate: The user's metric of a runner, higher is better, where there is one.
        teacher: The model before the first lossy pass, whose values recovery trains towards; never changed. Where it is
            None, the pipeline fills it in for the passes after that one.
    """

    target: Target | None = None
    data: CalibrationData | None = None
    run: Executor | None = None
    oracle: Executor | None = None
    seed: int = 0
    progress: Progress = quiet
    calibrate: Callable[..., Calibration] | None = None
    differentiate: Callable[..., Any] | None = None
    deploy: Callable[[ir.Model], Runner] | None = None
    evaluate: Callable[[Runner], float] | None = None
    teacher: ir.Model | None = None


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

    def options(self) -> dict[str, Any]:
        """The options with their values, JSON-able."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
