"""``taid``: towards a target that moves from the student to the teacher (arXiv:2501.16937, and the released code)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphpress.errors import BadRequest
from graphpress.passes.recover.losses.base import Loss, Seen

if TYPE_CHECKING:
    import torch


@dataclass
class Taid(Loss):
    """-sum_v p_t log q in nats, p_t = softmax((1 - t) sg(s) + t z), a mean over positions; t goes from start to end.

    s are the student's logits, z the teacher's, q = softmax(s); the target has no gradient. t follows a straight line
    over the steps, or runs ahead of it by ``alpha sigmoid(m) (1 - t)`` a step, where m is the moving average of the
    loss's relative decrease. What parameters are kept by is the divergence from the teacher itself.

    Attributes:
        start: t at first: the larger the gap between the models, the smaller.
        end: t in the end.
        alpha: The most that t gains on a step; 0: it follows the line.
        beta: How much of the average of decreases is kept.
        axis: The axis of the classes.
        on: Names of the outputs that hold logits; empty: all outputs of floats.
        mask: Name of an array of the data, of the logits' shape without the classes: positions of 0 do not count.
        shift: Position i predicts token i + 1 (axis 1): the last logits and the first of the mask are left out.
    """

    start: float = 0.4
    end: float = 1.0
    alpha: float = 5e-4
    beta: float = 0.99
    axis: int = -1
    on: tuple[str, ...] = ()
    mask: str | None = None
    shift: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.start <= self.end <= 1 and 0 <= self.alpha <= 1 and 0 <= self.beta < 1):
            raise BadRequest("0 <= start <= end <= 1, 0 <= alpha <= 1, 0 <= beta < 1 must hold", where="loss 'taid'")
        self.t, self.momentum, self.previous = self.start, 0.0, math.inf

    @property
    def features(self) -> tuple[str, ...]:
        return self.on

    @property
    def reads(self) -> tuple[str, ...]:
        return () if self.mask is None else (self.mask,)

    def __call__(self, seen: Seen) -> torch.Tensor:
        return seen.mean(lambda s, z: self.cross(seen, s, self.target(s, z)), self.on, "taid")

    def target(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """The logits in between, without a gradient; at the ends those of one alone, so that 0 meets no infinity."""
        if self.t in (0.0, 1.0):
            return teacher if self.t else student.detach()
        return (1 - self.t) * student.detach() + self.t * teacher

    def cross(self, seen: Seen, student: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """-sum_v softmax(target) log softmax(student), the mean over the positions that count."""
        import torch

        dtype = torch.promote_types(student.dtype, torch.float32)
        student, target = (x.to(dtype).movedim(self.axis, -1) for x in (student, target))
        terms = target.softmax(-1) * student.log_softmax(-1)
        by_position = -terms.masked_fill(student.isinf(), 0.0).sum(-1)
        if self.shift:
            by_position = by_position[:, :-1]
        if self.mask is None:
            return by_position.mean()
        counted = seen.array(self.mask, "taid").to(dtype)
        counted = counted[:, 1:] if self.shift else counted
        if counted.shape != by_position.shape:
            raise BadRequest(
                f"the mask {self.mask!r} has shape {tuple(counted.shape)}, the positions {tuple(by_position.shape)}",
                where="loss 'taid'", fix="Set its option 'axis', or give one number a position.",
            )  # fmt: skip
        return (by_position * counted).sum() / counted.sum().clamp_min(1)

    def fixed(self) -> Loss:
        return _Divergence(self)

    def after_step(self, value: float, step: int, total: int | None) -> None:
        if total is None:
            raise BadRequest("its clock needs a number of steps", where="loss 'taid'", fix="Set the option 'steps'.")
        previous, self.previous = self.previous, value
        if math.isinf(previous):  # the first step only tells where it starts
            return
        decrease = (previous - value) / (previous + 1e-15)
        self.momentum = self.beta * self.momentum + (1 - self.beta) * decrease
        ahead = self.t + self.alpha / (1 + math.exp(-self.momentum)) * (1 - self.t)
        line = self.start + (self.end - self.start) * (step + 1) / total
        self.t = min(self.end, max(line, ahead))

    def state(self) -> dict[str, Any]:
        return {
            "t": self.t,
            "momentum": self.momentum,
            "previous": None if math.isinf(self.previous) else self.previous,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.t, self.momentum = float(state["t"]), float(state["momentum"])
        self.previous = math.inf if state["previous"] is None else float(state["previous"])


@dataclass(frozen=True)
class _Divergence(Loss):
    """KL(teacher || student), in nats, over the positions that ``taid`` counts."""

    taid: Taid

    @property
    def features(self) -> tuple[str, ...]:
        return self.taid.features

    @property
    def reads(self) -> tuple[str, ...]:
        return self.taid.reads

    def __call__(self, seen: Seen) -> torch.Tensor:
        def apart(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
            return self.taid.cross(seen, student, teacher) - self.taid.cross(seen, teacher, teacher)

        return seen.mean(apart, self.taid.on, "taid")


LOSS = Taid
