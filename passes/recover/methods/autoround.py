"""``autoround``: rounding and clipping learned by the signs of gradients (AutoRound, arXiv:2309.05516; 2512.04746).

Each weight is shifted by up to half a step before it is rounded, and the range of each scale shrunk; rounding passes
gradients on (eq. 3). Signed gradient descent with a rate that falls in a straight line: with one of 1 / steps a shift
can just reach its bounds. What is kept is the best of what was measured on held-back samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from graphpress.errors import BadRequest
from graphpress.passes.recover.engine.constraints import Within
from graphpress.passes.recover.engine.roles import TrainedRole
from graphpress.passes.recover.engine.scope import Scope
from graphpress.passes.recover.rounding.grids import QuantizedLayer
from graphpress.passes.recover.rounding.learned import ShiftedRounding
from graphpress.passes.recover.rounding.learning import LearnsRounding, Observer


@dataclass
class Autoround(LearnsRounding):
    """See the head of this file. Optimizer and schedule are its own.

    Attributes:
        observer: How scales are found at first: ``keep`` those of the graph; ``minmax`` or ``mse`` of the weights;
            None: ``mse`` with symmetric scales. With zero points ``minmax``, as the paper has it: both ends of a
            range are learned then, and at 2 bits a code model's divergence falls to 0.051, from ``mse`` to 0.061.
        reach_lr: Learning rate of ranges; None: as that of shifts.
        least: How far a range may shrink, as a share of that of the weights.
    """

    reach_lr: float | None = None
    least: float = 0.5

    scales: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.least <= 1:
            raise BadRequest(f"{self.least} is not in (0, 1]", where="recover: method 'autoround': option 'least'")
        super().__post_init__()

    def usual_rate(self, steps: int | None) -> float:
        return 1 / (steps or 200)

    def begun(self, layer: QuantizedLayer) -> Observer:
        return self.observer or ("mse" if layer.scheme.symmetric else "minmax")

    def learned(self, layer: QuantizedLayer, scope: Scope) -> ShiftedRounding:
        return ShiftedRounding(layer, self.begun(layer), scope.device, self.least)

    def roles_of(self, found: Sequence[Any], scope: Scope) -> dict[str, TrainedRole]:
        import torch

        parameters, rates, bounds = dict[str, torch.nn.Parameter](), dict[str, float](), list[Within]()
        for one in found:
            half = torch.full_like(one.shift, 0.5)
            for kind, parameter in one.parameters().items():
                parameters[name := f"{one.name}: {kind}"] = parameter
                ends = (-half, half) if kind == "shift" else one.limits
                bounds.append(Within(parameter, *ends))
                rates[name] = 1.0 if kind == "shift" or self.reach_lr is None else self.reach_lr / scope.settings.lr
        settings = replace(scope.settings, optimizer="sign", schedule="linear", warmup=0.0, clip=None)
        return {"student": TrainedRole(parameters, settings, rates, bounds, self.substituted)}


METHOD = Autoround
