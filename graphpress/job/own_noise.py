"""What each site of a plan costs at the outputs by itself: the float graph with that one site quantized.

Noise that comes in from sites before it is not in the figure, so that what merely passes noise on (Slice, Reshape) is
not blamed for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.graph import edit
from graphpress.graph.movement import CLAMPS, movement
from graphpress.job.gate import compare_outputs
from graphpress.observe.data import CalibrationData
from graphpress.passes.quantize.apply_plan import ApplyPlan
from graphpress.pipeline import Pipeline
from graphpress.runner import Arrays
from graphpress.types import Plan, Role

_BATCH = 16


def rounding(plan: Plan, model: ir.Model) -> list[str]:
    """Nodes of a plan that round: those with weights first. What only moves data has the codes of what it reads."""
    moving = {n.name for n in edit.nodes(model) if movement(n) is not None or n.op_type in CLAMPS}
    heavy = {s.node for s in plan if s.role is Role.WEIGHT}
    return sorted((n for n in plan.nodes() if n in heavy or n not in moving), key=lambda n: n not in heavy)


def own_noise(
    model: ir.Model, plan: Plan, sites: Sequence[str], samples: CalibrationData, ctx: Context, seconds: float = math.inf
) -> dict[str, float]:
    """SQNR in dB, of the output that suffers most, with one site quantized at a time; inf where it does nothing.

    Args:
        model: The float graph that the plan is for.
        plan: What was quantized. Weights are rounded to nearest here, whatever rounded them there.
        sites: Names of nodes of the plan.
        samples: What both read.
        ctx: Its ``calibrate`` should remember ranges (``observe.memo``), for each site asks for its own anew.
        seconds: After which no further site is looked at.
    """
    execute, start = ctx.need("oracle", "own_noise"), time.monotonic()
    size = (samples.binding.exact if samples.binding else None) or _BATCH
    wanted = list(map(execute(model), samples.batches(size)))
    Pipeline([ApplyPlan(plan)], check_numbers=False).run(model, ctx)  # all ranges at once
    found: dict[str, float] = {}
    for name in ctx.progress(sites, "noise by site", len(sites)):
        if found and time.monotonic() - start > seconds:
            break
        alone = plan.without(n for n in plan.nodes() if n != name)
        changed, _ = Pipeline([ApplyPlan(alone)], check_numbers=False).run(model, ctx)
        outputs, _ = compare_outputs(_Replay(iter(wanted)), execute(changed), samples.batches(size))
        found[name] = min((o.sqnr for o in outputs), default=math.inf)
    return found


@dataclass
class _Replay:
    """Gives outputs that are known, run by run."""

    known: Iterator[dict[str, np.ndarray]]
    input_names: Sequence[str] = ()
    output_names: Sequence[str] = ()

    def __call__(self, feeds: Arrays) -> dict[str, np.ndarray]:
        return next(self.known)
