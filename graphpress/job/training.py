"""Training by one's own loop: a graph as a torch module, and the trained module as a graph again."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphpress.errors import BadRequest, Unsupported
from graphpress.job import engine, student
from graphpress.job.models import ModelLike, as_model
from graphpress.keys import STAGE, TARGET
from graphpress.types import Stage

_SCALE_RATE = 10.0  # a weight's update is a small share of the largest weight, a scale's shall be one of the scale


def to_torch(model: ModelLike, *, quantizers: str = "straight-through") -> Any:
    """The graph as a differentiable ``torch.fx.GraphModule`` without kernels (see ``backends.fx.build``), to train.

    Weights that are stored as integers become float parameters behind their quantizers, as they were before they were
    folded, and biases plain floats: what the module gives stays the same. ``from_torch`` is the way back.

    Args:
        model: A model or the path of an ONNX file; never changed.
        quantizers: ``straight-through`` passes gradients through Q/DQ; ``learnable`` makes their scales and zero points
            learn as well, scales by relative steps, so that plain Adam at the rate of the weights trains them;
            ``exact`` computes in integers, which no gradient passes, and leaves the graph as it is.

    Raises:
        Unsupported: torch is not installed, an operator has no form in it, or the model was lowered to operators of a
            runtime that do not train.
    """
    given = as_model(model)
    build = engine.of_runtime("fx").build
    if quantizers == "exact":
        return build(given, quantizers=quantizers)
    try:
        opened = student.opened(given)
        student.refuse_integers(opened)
        return student.remember(build(opened, quantizers=quantizers), opened)
    except Unsupported as e:
        if STAGE.get(given) is not Stage.LOWERED:
            raise
        fix = f"It was lowered for {given.metadata_props.get(TARGET)}: compile with portable=True for a graph to train."
        raise Unsupported(e.what, where=e.where, fix=fix) from e


def from_torch(module: Any, *, like: ModelLike | None = None) -> ir.Model:
    """What ``to_torch`` made, trained, as a graph again: Q/DQ with its weights, scales and zero points.

    Nothing is traced: it is the graph that the student was built from, with weights unfolded; names, schemes and the
    call stay. The recipe ``fold`` makes integers of it: ``compile(from_torch(student), "fold", data)``. Wherever a
    model is asked for, a student stands for this graph.

    Args:
        module: The student, or a copy of it; within ``torch.compile``, DDP or an AveragedModel too.
        like: The model, or the path of the file, that ``to_torch`` was given; never changed. By default what the
            student remembers.

    Raises:
        BadRequest: It is no such module, ``like`` is another model, or training left NaN in it.
        Unsupported: A parameter within the body of a Loop, Scan or If was trained.
        VerifyError: A layer lost its n:m zeros.
    """
    return student.restored(module, as_model(like) if like is not None else None)


def parameter_groups(
    module: Any,
    lr: float = 1e-4,
    *,
    scale_lr: float | None = None,
    zero_point_lr: float | None = None,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Groups for any optimiser of torch, each with its ``name``: weights, vectors, scales, zero_points; no empty ones.

    Args:
        module: As ``to_torch`` made it.
        lr: Of weights, and of vectors (biases, gains of norms).
        scale_lr: Of scales, which are logarithms: a step of 1e-3 is 0.1 %. By default ten times ``lr``.
        zero_point_lr: Of zero points, in steps of the codes. By default a hundred times ``lr``.
        weight_decay: Of weights alone.

    Raises:
        BadRequest: It is no module of a graph, or a rate is not a finite number of 0 or more.
    """
    rates = {
        "weights": lr,
        "vectors": lr,
        "scales": _SCALE_RATE * lr if scale_lr is None else scale_lr,
        "zero_points": 100.0 * lr if zero_point_lr is None else zero_point_lr,
    }
    for name, rate in {**rates, "weight_decay": weight_decay}.items():
        if not (np.isfinite(rate) and rate >= 0):
            raise BadRequest(f"{rate!r} is no rate", where=f"parameter_groups: {name}", fix="Give a number, 0 or more.")
    found = engine.of_runtime("fx").kinds(module)
    decay = {"weights": weight_decay}
    return [
        {"name": kind, "params": params, "lr": rates[kind], "weight_decay": decay.get(kind, 0.0)}
        for kind, params in found.items()
        if params
    ]
