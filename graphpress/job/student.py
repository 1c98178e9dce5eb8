"""A graph in the form that trains, and what training made of it; ``job.training`` is the face of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphpress.contracts import PassReport
from graphpress.errors import BadRequest, Unsupported
from graphpress.graph import edit, half_storage, quantized, verify
from graphpress.job import engine
from graphpress.keys import STAGE, TARGET
from graphpress.ops import packing
from graphpress.passes.fold.unfold_weights import unfold
from graphpress.passes.recover.engine import parameters
from graphpress.types import Stage, Storage

_SOURCE = "graphpress.model"  # in the meta of a torch module: the graph that it was built from
_BEFORE = "Take the model before its weights are folded: a pipeline or recipe that ends before fold-weights."


@dataclass(frozen=True, eq=False)
class Source:
    """The graph that a module was built from. Copies of the module share it."""

    model: ir.Model

    def __deepcopy__(self, memo: dict[int, Any]) -> Source:
        return self


def remember(module: Any, model: ir.Model) -> Any:
    """The module, which knows its graph from now on; so do its copies."""
    module.meta[_SOURCE] = Source(model)
    return module


def is_student(module: Any) -> bool:
    """Whether something is a module that knows its graph."""
    return isinstance(getattr(module, "meta", None), dict) and _SOURCE in module.meta


def opened(model: ir.Model) -> ir.Model:
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


def restored(module: Any, like: ir.Model | None = None) -> ir.Model:
    """A new graph: that of ``like`` (by default the one that the module was built from) with what was trained.

    Raises:
        BadRequest, Unsupported, VerifyError: As ``training.from_torch``.
    """
    runtime = engine.of_runtime("fx")
    if like is None:
        source = runtime.unwrapped(module).meta.get(_SOURCE)
        if source is None:
            raise BadRequest("this module does not know its graph", where="from_torch", fix="Give the model as `like`.")
        like = source.model
    model = opened(like)
    model = model.clone() if model is like else model
    for name, array in runtime.trained(module, model).items():
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


def _write(value: ir.Value, array: np.ndarray) -> None:
    value.const_value = ir.Tensor(array, dtype=value.dtype, name=value.name)


def refuse_integers(model: ir.Model) -> None:
    """Refuse weights that stay integers: those of operators that a lowering makes."""
    for graph in edit.graphs(model):
        for value in graph.initializers.values() if isinstance(graph, ir.Graph) else ():
            codes = Storage.of_codes(value.dtype) is not None and value.shape is not None and len(value.shape) > 1
            reader = next((u.node for u in value.uses() if not quantized.holds_scale(value)), None)
            if codes and reader is not None and not (quantized.encodes(reader) or quantized.decodes(reader)):
                what = f"{reader.op_type} reads its weight as {value.dtype}, which no gradient reaches"
                raise Unsupported(what, where=f"node {reader.name!r}", fix=_BEFORE)
