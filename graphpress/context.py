"""Everything that a run of passes may depend on beside the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from graphpress.observe.collect import Calibration
from graphpress.observe.data import CalibrationData
from graphpress.runner import Executor, Progress, Runner, quiet
from graphpress.target import Target


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
        calibrate: Stands in for ``observe.collect.collect``, with the same arguments.
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
