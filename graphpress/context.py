"""Everything that a run of passes may depend on beside the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import onnx_ir as ir

from graphpress.errors import BadRequest
from graphpress.observe.collect import Calibration
from graphpress.observe.data import CalibrationData
from graphpress.runner import Executor, Progress, Runner, quiet
from graphpress.target import Target

# What a pass may ask for: how to say that it is missing, and the way out.
_MISSING = {
    "target": ("a target", "Give target=, or Context(target=..) in a Pipeline of your own"),
    "data": ("calibration data", "Give data (--data)"),
    "run": ("to run the model", "Give Context(run=graphpress.backends.ort.execute), or use graphpress.compile"),
    "oracle": ("to run the model", "Give Context(oracle=graphpress.backends.reference.execute)"),
    "differentiate": (
        "the torch backend",
        "Give Context(differentiate=graphpress.backends.fx.build), or use graphpress.compile",
    ),
    "deploy": ("a target to be measured on", "Use graphpress.compile, or give Context(deploy=..)"),
    "evaluate": ("a metric", "Put labels into the data, or give evaluate="),
    "teacher": ("the model as it was before", "In a Pipeline of your own, give Context(teacher=..)"),
}


@dataclass(frozen=True)
class Context:
    """Everything a run may depend on beside the model; nothing is global.

    Attributes:
        target: Where the result will run; its capabilities steer decisions.
        data: Calibration data, or None. A Pipeline makes it of what else ``graphpress.calibration_data`` takes.
        run: Executes a model fast, on one thread for each run (calibration runs several at a time); None where nothing
            may be executed.
        oracle: Executes a model without any runtime optimisation: the reference semantics.
        seed: Seed of everything random.
        progress: Shows progress of long loops.
        state: A file that calibration keeps its state in, and beside which long passes keep theirs; None: nowhere.
        calibrate: Stands in for ``observe.collect.collect``, with the same arguments.
        differentiate: Builds a torch module of a model that passes gradients (``backends.fx.build``, with the same
            arguments); None where torch may not be used. Raises Unsupported where torch is not installed.
        deploy: Lowers a portable model for the target and gives a runner of it there, on as many threads as users have.
        lower: Lowers a portable model for the target: what is saved in the end.
        evaluate: The user's metric of a runner, higher is better, where there is one.
        outputs: What outputs are, where the user says so (the gate's option ``outputs``): a kind by name.
        teacher: The model before the first lossy pass, whose values recovery trains towards; never changed. Where it is
            None, the pipeline fills it in for the passes after that one.
    """

    target: Target | None = None
    data: CalibrationData | None = None
    run: Executor | None = None
    oracle: Executor | None = None
    seed: int = 0
    progress: Progress = quiet
    state: Path | None = None
    calibrate: Callable[..., Calibration] | None = None
    differentiate: Callable[..., Any] | None = None
    deploy: Callable[[ir.Model], Runner] | None = None
    lower: Callable[[ir.Model], ir.Model] | None = None
    evaluate: Callable[[Runner], float] | None = None
    teacher: ir.Model | None = None
    outputs: Mapping[str, str] = field(default_factory=dict)

    @overload
    def need(self, what: Literal["target"], by: str, why: str = "", instead: str = "") -> Target: ...
    @overload
    def need(self, what: Literal["data"], by: str, why: str = "", instead: str = "") -> CalibrationData: ...
    @overload
    def need(self, what: Literal["run", "oracle"], by: str, why: str = "", instead: str = "") -> Executor: ...
    @overload
    def need(self, what: Literal["teacher"], by: str, why: str = "", instead: str = "") -> ir.Model: ...
    @overload
    def need(self, what: Literal["differentiate"], by: str, why: str = "", instead: str = "") -> Callable[..., Any]: ...
    @overload
    def need(
        self, what: Literal["deploy"], by: str, why: str = "", instead: str = ""
    ) -> Callable[[ir.Model], Runner]: ...
    @overload
    def need(
        self, what: Literal["evaluate"], by: str, why: str = "", instead: str = ""
    ) -> Callable[[Runner], float]: ...

    def need(self, what: str, by: str, why: str = "", instead: str = "") -> Any:
        """The field ``what``, which a pass cannot do without.

        Args:
            what: Name of the field.
            by: Who asks: the pass, and its option where one is the reason (``prune: option 'method'``).
            why: What for, where "needs calibration data" does not say enough.
            instead: A way out without it, an imperative that follows "Give ..., or".

        Raises:
            BadRequest: It is None; the message says who needs it and how to give it.
        """
        found = getattr(self, what)
        if found is None:
            thing, fix = _MISSING[what]
            fix = f"{fix}, or {instead}" if instead else fix
            raise BadRequest(why or f"needs {thing}", where=by, fix=f"{fix}.")
        return found
