"""Budgets of a whole compilation, handed to the pass of a recipe that can hold them."""

from __future__ import annotations

import dataclasses
import math

import onnx_ir as ir

from graphpress.contracts import Budget, HoldsBudgets
from graphpress.errors import BadRequest, GateError
from graphpress.graph import half
from graphpress.graph.file_size import file_bytes
from graphpress.job import hold_drop
from graphpress.job.job import Compiled, Job
from graphpress.recipe import Recipe


def holds(recipe: Recipe) -> bool:
    """Whether a pass of a recipe searches within budgets."""
    return any(isinstance(p, HoldsBudgets) for p in recipe.passes)


def of_file(max_size: Budget, model: ir.Model) -> Budget:
    """A share of the model as the user has it in bytes, where it has halves: passes see it in float32."""
    text = str(max_size).strip()
    if not text.endswith("x") or not half.found(model):
        return max_size
    try:
        share = float(text.removesuffix("x"))
    except ValueError:
        return max_size  # whoever reads it refuses it
    return share * file_bytes(model) if 0 < share <= 1 else max_size


def handed(recipe: Recipe, max_latency: Budget, max_size: Budget, max_drop: float | None) -> Recipe:
    """The recipe with these budgets in place of its own; as it is where none is given.

    The gate lets a larger drop pass too, since it is asked for.

    Raises:
        BadRequest: A budget of latency or size, and no pass that could hold it.
    """
    if max_drop is not None and recipe.gate.max_loss < max_drop < math.inf:
        recipe = dataclasses.replace(recipe, gate=dataclasses.replace(recipe.gate, max_loss=max_drop))
    budgets = {"max_latency": max_latency, "max_size": max_size, "max_drop": max_drop}
    given = [o for o, b in budgets.items() if b is not None]
    able = holds(recipe)
    if not able and given and given != ["max_drop"]:
        raise BadRequest(f"recipe {recipe.name!r} cannot hold it", where=given[0], fix="Use the recipe mixed.")
    if not able or not given:
        return recipe
    limited = (
        p.with_budgets(max_latency, max_size, max_drop) if isinstance(p, HoldsBudgets) else p for p in recipe.passes
    )
    return dataclasses.replace(recipe, passes=tuple(limited))


def held(job: Job, compiled: Compiled, max_drop: float | None) -> Compiled:
    """The compiled model within a budget of the metric: as a pass found it, or with sites back in float.

    Raises:
        GateError: The budget cannot be held, or the finished model loses more than the pass measured.
        BadRequest: See ``hold_drop.hold_drop``.
    """
    if max_drop is None:
        return compiled
    if not holds(job.recipe):
        return hold_drop.hold_drop(job, compiled, max_drop)
    assert job.evaluate is not None
    before, after = job.evaluate(job.original()), compiled.metric or 0.0
    compiled.report.metric = {"before": before, "after": after, "allowed": max_drop}
    if before - after > max_drop + 1e-9:
        raise GateError(
            f"the metric falls from {before:g} to {after:g}", where="max_drop", fix="Allow more, or more formats."
        )
    return compiled
