"""Every error a user can meet, as one tree.

::

    GraphpressError
    |-- InvalidModel       the file or graph is not a model we accept
    |-- VerifyError        a pass left a broken graph: a bug in that pass
    |-- PassError          a pass raised, or its result is not what it promised
    |-- StaleSite          a site names a node or slot that the graph no longer has
    |-- Unsupported        the request cannot be met at all (partial answers are Skips)
    |-- CalibrationError   the data does not fit the model
    |-- RecipeError        unknown recipe, pass, option, or a value of the wrong type
    |-- GateError          the rewritten model is not as accurate as asked
    `-- BadRequest         any other argument, path or output folder that cannot be used

A message has three parts: where (file, node or option), the rule it broke, and the way out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GraphpressError(Exception):
    """Base of all errors meant for the user.

    Args:
        what: The rule that was broken, one sentence without a final full stop.
        where: The file, node, option or value concerned.
        fix: The way out, an imperative sentence.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(": ".join(p for p in (where, what) if p) + (f". {fix}" if fix else ""))


class InvalidModel(GraphpressError):
    """The file or graph is not a model we accept."""


class VerifyError(GraphpressError):
    """A pass left a structurally broken graph."""


class PassError(GraphpressError):
    """A pass raised, or its result is not what it promised."""


class StaleSite(GraphpressError):
    """A site names a node or slot that the graph no longer has."""


class Unsupported(GraphpressError):
    """The request cannot be met at all."""


class CalibrationError(GraphpressError):
    """The calibration data does not fit the model."""


class RecipeError(GraphpressError):
    """Unknown recipe, pass or option, or a value of the wrong type."""


class GateError(GraphpressError):
    """The rewritten model is not as accurate as asked. ``model`` and ``report`` hold what was made, to look at."""

    model: object = None
    report: object = None


class BadRequest(GraphpressError):
    """An argument, path or output folder that cannot be used."""


_MOST = 40  # names in a message


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that offers the nearest known name, or lists them when none is near and they are not too many."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    if not close and len(known) > _MOST:
        return f"None of the {len(known)} known names is near."
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known) or 'none'}."
