"""Compute once, at compile time, what does not depend on the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import edit
from graphpress.graph.evaluate import evaluate
from graphpress.graph.movement import rearranges
from graphpress.passes.clean.known_dims import known_dims
from graphpress.passes.clean.lift_constants import freeze
from graphpress.passes.clean.result_size import result_size
from graphpress.types import Numerics

_CASTS = {(source, target) for source in "biuf" for target in "iuf" if target == "f" or source != "f"}


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replace nodes whose inputs are all constant, and sizes that are static in a dynamic shape, by their values.

    An initializer that is a graph input can be overridden by the caller and counts as no constant. Random operators,
    control flow, and QuantizeLinear and DequantizeLinear, whose place in the graph carries meaning, are never folded.

    Attributes:
        limit: A result may have this many elements, or as many as the constants that it makes superfluous.
    """

    name: ClassVar[str] = "fold-constants"
    # A runtime packs a weight that has become constant, and may then add in another order (LSTM in ONNX Runtime).
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    limit: int = 1 << 20

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        for scope in edit.graphs(model):
            imports = scope.opset_imports if isinstance(scope, ir.Function) else model.opset_imports
            opset = imports.get("", edit.opset(model))
            for node in list(scope):
                if self._fold(scope, node, opset, report):
                    sources = list(node.inputs)
                    edit.remove([node])
                    edit.remove_unused(sources)
                    report.changed += 1
        if report.changed:
            model.ir_version = max(model.ir_version or 0, 4)

    def _fold(self, scope: edit.Scope, node: ir.Node, opset: int, report: PassReport) -> bool:
        if node.domain != "" or node.op_type == "Constant" or any(a.is_ref() for a in node.attributes.values()):
            return False
        if node.op_type == "Identity" and node.outputs[0].is_graph_output():
            return False  # carries the public name of a constant output
        return _fold_sizes(scope, node) or self._fold_values(scope, node, opset, report)

    def _fold_values(self, scope: edit.Scope, node: ir.Node, opset: int, report: PassReport) -> bool:
        if not node.inputs or not all(v is None or edit.is_constant(v) for v in node.inputs):
            return False
        inputs = [edit.constant(v) for v in node.inputs]
        size = result_size(node, inputs)
        if size is None:
            return False
        if size > max(self.limit, _freed(node)):
            report.skip(node, f"the result would have {size:,} elements, the limit is {self.limit:,}")
            return False
        try:
            results = _typed(node, evaluate(node, inputs, opset))
        except ValueError as e:
            report.skip(node, f"not computable: {e}")
            return False
        weight = _sole_weight(scope, node)
        consts = [
            freeze(scope, value, ir.Tensor(np.ascontiguousarray(array).reshape(array.shape)))
            for value, array in zip(node.outputs, results, strict=True)
            if value.name
        ]
        if weight is not None:
            name = weight.name
            node.replace_input_with(0, None)
            edit.remove_unused([weight])
            consts[0].name = name
        return True


def _typed(node: ir.Node, results: list[np.ndarray]) -> list[np.ndarray]:
    for value, array in zip(node.outputs, results, strict=True):
        if value.dtype is not None and ir.DataType.from_numpy(array.dtype) != value.dtype:
            raise ValueError(f"the reference gives {array.dtype}, the graph says {value.dtype}")
    return results


def _fold_sizes(scope: edit.Scope, node: ir.Node) -> bool:
    if node.op_type == "CastLike":
        return _make_cast(scope, node)
    value = node.outputs[0]
    if node.op_type == "Size":
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        dims = None if shape is None or not shape.is_static() else np.array(np.prod(shape.numpy()), dtype=object)
    else:
        dims = known_dims(value)
    if dims is None or not all(isinstance(d, int) for d in dims.ravel()):
        return False
    freeze(scope, value, ir.Tensor(dims.astype(np.int64)))
    return True


def _make_cast(scope: edit.Scope, node: ir.Node) -> bool:
    """A CastLike whose target type is known no longer depends on the value that it is like.

    Float to integer is left out: what happens out of range is the runtime's business.
    """
    data, like = edit.constant(node.inputs[0]), node.inputs[1]
    if data is None or like is None or like.dtype is None:
        return False
    target = like.dtype.numpy()
    if (data.dtype.kind, target.kind) not in _CASTS:
        return False
    with np.errstate(over="ignore"):
        freeze(scope, node.outputs[0], ir.Tensor(data.astype(target)))
    return True


def _freed(node: ir.Node) -> int:
    """Elements of the constants that nobody else reads."""
    tensors = {id(v): edit.constant_tensor(v) for v in node.inputs if v is not None and len(v.uses()) == 1}
    return sum(t.size for t in tensors.values() if t is not None)


def _sole_weight(scope: edit.Scope, node: ir.Node) -> ir.Value | None:
    """The initializer that ``node`` rearranges for itself alone: the result takes over its name."""
    weight = node.inputs[0]
    sole = weight is not None and weight.is_initializer() and len(weight.uses()) == 1 and not weight.is_graph_output()
    public = isinstance(scope, ir.Function) or node.outputs[0].is_graph_output()
    if weight is None or not sole or public or weight.graph is not node.graph:
        return None
    return weight if rearranges(node) or node.op_type in ("Cast", "CastLike") else None
