"""Which parameters are kept in the end: a choice apart from the loss, which may move with time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from graphpress.errors import BadRequest
from graphpress.passes.recover.methods.base import Method, Select


@dataclass(frozen=True)
class Selection:
    """How what is kept is chosen.

    Attributes:
        by: ``held``: the lowest of the method's fixed measure on held-back samples; ``metric``: the best of the user's
            metric; ``last``: the parameters after the last update; ``ema``: their moving average then.
        decay: Of the moving average.
        metric: For ``metric``: what the exported model scores now, lower is better.
    """

    by: Select = "held"
    decay: float = 0.999
    metric: Callable[[], float] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise BadRequest(f"{self.decay} is not in [0, 1)", where="recover: option 'ema'")

    @property
    def compares(self) -> bool:
        """Whether an earlier state may be kept."""
        return self.by in ("held", "metric")


def selected(method: Method, name: str, asked: Select | None) -> Select:
    """What the user asks for, or else the method.

    Raises:
        BadRequest: It makes no sense with this method.
    """
    by = asked or method.select
    if by not in method.selects:
        raise BadRequest(
            f"method {name!r} cannot be selected by {by!r}", where="recover: option 'select'",
            fix=f"It takes {', '.join(method.selects)}.",
        )  # fmt: skip
    return by
