"""Budgets as users give them: ``0.6x`` of the float model, or milliseconds, bytes, points of the metric."""

from __future__ import annotations

import math

from graphpress.errors import BadRequest

Budget = float | str | None


def absolute(budget: Budget, whole: float, option: str) -> float | None:
    """What a budget means, ``whole`` being that of the float model; None where there is none.

    Raises:
        BadRequest: Not a number with or without an x; a share outside (0, 1]; a number that is not above 0.
    """
    if budget is None:
        return None
    where = f"allocate: option {option!r}, {budget!r}"
    text = str(budget).strip()
    try:
        value = float(text.removesuffix("x"))
    except ValueError:
        raise BadRequest(
            "is no budget", where=where, fix="Write 0.6x, a share of the float model, or a number."
        ) from None
    if text.endswith("x"):
        if not 0 < value <= 1:
            raise BadRequest("a share must lie above 0 and at most at 1", where=where, fix="Write 0.6x, for example.")
        return value * whole
    if not (math.isfinite(value) and value > 0):
        raise BadRequest("a budget must be a number above 0", where=where)
    return value


def drop(budget: float | None) -> float | None:
    """The loss allowed.

    Raises:
        BadRequest: It is no number from 0 up.
    """
    if budget is not None and not 0 <= budget < math.inf:
        raise BadRequest(
            f"{budget:g} is no budget", where="allocate: option 'max_drop'", fix="Give a number from 0 up."
        )
    return budget
