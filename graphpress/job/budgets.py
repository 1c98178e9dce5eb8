"""Budgets of a whole compilation, handed to the pass of a recipe that can hold them."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

from graphpress.errors import BadRequest, GateError
from graphpress.job import hold_drop
from graphpress.job.job import Compiled, Job
from graphpress.recipe import Recipe

Budget: TypeAlias = float | str | None
_OPTIONS = ("max_latency", "max_size", "max_drop")


def holder(recipe: Recipe) -> str | None:
    """The name of the pass of a recipe that searches within budgets, if there is one."""
    return next((p.name for p in recipe.passes if all(hasattr(p, o) for o in _OPTIONS)), None)


def handed(recipe: Recipe, max_latency: Budget, max_size: Budget, max_drop: float | None) -> Recipe:
    """The recipe with these budgets in place of its own; as it is where none is given.

    Raises:
        BadRequest: A budget of latency or size, and no pass that could hold it.
    """
    budgets = dict(zip(_OPTIONS, (max_latency, max_size, max_drop), strict=True))
    given = [o for o, b in budgets.items() if b is not None]
    name = holder(recipe)
    if name is None and given and given != ["max_drop"]:
        option = given[0]
        raise BadRequest(f"recipe {recipe.name!r} cannot hold it", where=option, fix="Use the recipe mixed.")
    if name is None or not given:
        return recipe
    steps: list[Any] = [*recipe.passes]  # every pass is a dataclass
    passes = (dataclasses.replace(p, **budgets) if p.name == name else p for p in steps)
    return dataclasses.replace(recipe, passes=tuple(passes))


def held(job: Job, compiled: Compiled, max_drop: float | None) -> Compiled:
    """The compiled model within a budget of the metric: as a pass found it, or with sites back in float.

    Raises:
        GateError: The budget cannot be held, or the finished model loses more than the pass measured.
        BadRequest: See ``hold_drop.hold_drop``.
    """
    if max_drop is None:
        return compiled
    if holder(job.recipe) is None:
        return hold_drop.hold_drop(job, compiled, max_drop)
    assert job.evaluate is not None
    before, after = job.evaluate(job.original()), compiled.metric or 0.0
    compiled.report.metric = {"before": before, "after": after, "allowed": max_drop}
    if before - after > max_drop + 1e-9:
        raise GateError(
            f"the metric falls from {before:g} to {after:g}", where="max_drop", fix="Allow more, or more formats."
        )
    return compiled
