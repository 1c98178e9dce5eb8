"""Training by one's own loop: a graph as a torch module, and the trained module as a graph again."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphpress.contracts import PassReport
from graphpress.errors import BadRequest, Unsupported
from graphpress.graph import edit, half_storage, quantized, verify
from graphpress.job import engine
from graphpress.job.models import ModelLike, as_model
from graphpress.keys import STAGE, TARGET
from graphpress.ops import packing
from graphpress.passes.fold.unfold_weights import unfold
from graphpress.passes.recover.engine import parameters
from graphpress.types import Stage, Storage

_BEFORE = "Take the model before its weights are folded: a pipeline or recipe that ends before fold-weights."
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
        opened = _opened(given)
        _refuse_integers(opened)
        return build(opened, quantizers=quantizers)
    except Unsupported as e:
        if STAGE.get(given) is not Stage.LOWERED:
            raise
        fix = f"It was lowered for {given.metadata_props.get(TARGET)}: compile with portable=True for a graph to train."
        raise Unsupported(e.what, where=e.where, fix=fix) from e


def from_torch(module: Any, *, like: ModelLike) -> ir.Model:
    """What ``to_torch`` made, trained, as a graph again: Q/DQ with its weights, scales and zero points.

    Nothing is traced: the graph is that of ``like`` with weights unfolded, and names, schemes and the call stay. The
    recipe ``fold`` makes integers of it: ``compile(from_torch(student, like=model), "fold", data)``.

    Args:
        module: The student, or a copy of it; within ``torch.compile``, DDP or an AveragedModel too.
        like: The model, or the path of the file, that ``to_torch`` was given; never changed.

    Raises:
        BadRequest: It is no such module, ``like`` is another model, or training left NaN in it.
        Unsupported: A parameter within the body of a Loop, Scan or If was trained.
        VerifyError: A layer lost its n:m zeros.
    """
    model = _opened(as_model(like))
    model = model.clone() if model is like else model
    for name, array in engine.of_runtime("fx").trained(module, model).items():
        _write(model.graph.initializers[name], array)
    for name, (low, high) in parameters.limits(model).items():  # fewer bits than their type stores
        value = model.graph.initializers[name]
        assert value.const_value is not None
        _write(value, np.clip(value.const_value.numpy(), low, high))
    model.metadata_props.pop(TARGET, None)
    if any(quantized.decodes(node) for node in edit.nodes(model)):
        STAGE.set(model, Stage.QDQ)
    verify.check(model)
    return model


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


def _opened(model: ir.Model) -> ir.Model:
    """The model with what is stored in a narrow or packed form as floats again: a copy, or itself where nothing is.

    Raises:
        Unsupported: A weight is stored in a way that has no such form.
    """
    model = packing.unpacked(half_storage.taken_back(model))
    if not any(quantized.decodes(node) for node in edit.nodes(model)):
        return model
    copy, report = model.clone(), PassReport()
    unfold(copy, report)
    for skip in report.skips:
        raise Unsupported(f"its weight cannot be trained: {skip.why}", where=f"node {skip.where!r}", fix=_BEFORE)
    return copy


def _write(value: ir.Value, array: np.ndarray) -> None:
    value.const_value = ir.Tensor(array, dtype=value.dtype, name=value.name)


def _refuse_integers(model: ir.Model) -> None:
    """Refuse weights that stay integers: those of operators that a lowering makes."""
    for graph in edit.graphs(model):
        for value in graph.initializers.values() if isinstance(graph, ir.Graph) else ():
            codes = Storage.of_codes(value.dtype) is not None and value.shape is not None and len(value.shape) > 1
            reader = next((u.node for u in value.uses() if not quantized.holds_scale(value)), None)
            if codes and reader is not None and not (quantized.encodes(reader) or quantized.decodes(reader)):
                what = f"{reader.op_type} reads its weight as {value.dtype}, which no gradient reaches"
                raise Unsupported(what, where=f"node {reader.name!r}", fix=_BEFORE)
