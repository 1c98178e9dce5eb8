"""``labels``: cross-entropy against the labels that came with the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from graphpress.errors import BadRequest
from graphpress.observe.binding import LABELS
from graphpress.passes.recover.losses.base import Loss, Seen

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Labels(Loss):
    """-log softmax(s)[label], in nats: mean over all positions whose label is not negative.

    Attributes:
        axis: The axis of the classes. Labels have the shape of the output without it; axes of size 1 may be missing.
        on: Name of the output that holds the logits; None: the first of floats.
    """

    teacher: ClassVar[bool] = False

    axis: int = -1
    on: str | None = None

    @property
    def features(self) -> tuple[str, ...]:
        return () if self.on is None else (self.on,)

    def __call__(self, seen: Seen) -> torch.Tensor:
        labels = seen.array(LABELS, "labels")
        given = (seen.student[n] for n in self.features or seen.outputs if n in seen.student)
        logits = next((s for s in given if s.is_floating_point()), None)
        if logits is None:
            raise BadRequest("no output is of floats", where="loss 'labels'", fix="Name it with its option 'on'.")
        classes = logits.movedim(self.axis, -1)
        chosen = labels.reshape(-1).long()
        rows = classes.reshape(-1, classes.shape[-1])
        if len(chosen) != len(rows) or int(chosen.max()) >= rows.shape[1]:
            raise BadRequest(
                f"labels {tuple(labels.shape)} below {rows.shape[1]} do not fit logits "
                f"{tuple(logits.shape)} with classes on axis {self.axis}",
                where="loss 'labels'", fix="Set its option 'axis'.",
            )  # fmt: skip
        found = rows.log_softmax(-1).gather(1, chosen.clamp_min(0)[:, None])[:, 0]
        counted = chosen >= 0
        return -(found * counted).sum() / counted.sum().clamp_min(1)


LOSS = Labels
