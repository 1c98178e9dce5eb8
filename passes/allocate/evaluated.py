"""The user's metric, called with care: it may raise, or give no number."""

from __future__ import annotations

import math

from graphpress.context import Context
from graphpress.errors import BadRequest, GraphpressError
from graphpress.runner import Runner


def evaluated(ctx: Context, runner: Runner, what: str) -> float:
    """The metric of a runner; ``what`` says which model that is.

    Raises:
        BadRequest: It raises, or gives no finite number; the message names it.
    """
    metric = ctx.need("evaluate", "allocate")
    name = getattr(metric, "__qualname__", type(metric).__name__)
    try:
        value = float(metric(runner))
    except GraphpressError:
        raise
    except Exception as e:  # the user's own code may raise anything
        where = f"metric {name}, on {what}"
        raise BadRequest(f"it raises {type(e).__name__}: {e}", where=where, fix="Repair it, or use kl.") from e
    return number(value, name, what)


def number(value: float, metric: str, what: str) -> float:
    """``value``, if it is one.

    Raises:
        BadRequest: NaN or infinity.
    """
    if not math.isfinite(value):
        where = f"metric {metric}, on {what}"
        raise BadRequest(f"it gives {value}", where=where, fix="Repair it, or choose another sensitivity.")
    return value
