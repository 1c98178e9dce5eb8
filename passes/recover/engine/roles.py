"""What one optimizer trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graphpress.passes.recover.engine.constraints import Constraint
from graphpress.passes.recover.engine.schedule import Settings
from graphpress.passes.recover.engine.student import Module

if TYPE_CHECKING:
    import torch


@dataclass(eq=False)
class TrainedRole:
    """What is trained together by one optimizer: a student, a critic, a teacher that learns with its student.

    Attributes:
        parameters: By name; leaves that require gradients, of memory of their own. In ``module``'s roles the names are
            those of the graph's initializers.
        settings: Rates, optimizer, clipping of this role; its steps, seconds, seed and period are not looked at. None:
            those of the training.
        rates: Factors on the learning rate of some parameters.
        constraints: What holds after every update.
        module: The part of a graph that runs them; None where it is none of a graph.
        export: Whether they are part of what comes out: only those are kept at their best, averaged, and written back.
        forget: Parameters that the method has replaced by hand: the optimizer forgets what it remembers of them.
    """

    parameters: Mapping[str, torch.nn.Parameter]
    settings: Settings | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    constraints: Sequence[Constraint] = ()
    module: Module | None = None
    export: bool = True
    forget: set[str] = field(default_factory=set)
