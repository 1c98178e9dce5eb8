"""Store what is quantized at compile time as integers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import edit
from graphpress.passes.fold.grid import Grid, grid_of, is_quantize
from graphpress.types import Numerics, Stage

STREAMED = 1 << 24  # bytes; a tensor at least this large that lives in a file is quantized each time it is read


@dataclass(frozen=True)
class FoldWeights(Pass):
    """Replace Q of a constant by an integer initializer of the name of its result; a float one left unused goes.

    Bit for bit what ONNX Runtime's QuantizeLinear gives, per tensor, per channel and blocked, from 2 to 16 bits. One
    tensor is read at a time, and large ones that live in a file are not held: they are quantized on the way to the
    new file.
    """

    name = "fold-weights"
    numerics = Numerics.EXACT
    needs = (Stage.QDQ,)

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        made: dict[tuple[object, ...], ir.Value] = {}
        for node in edit.nodes(model):
            source = node.inputs[0] if is_quantize(node) else None
            tensor = edit.constant_tensor(source)
            if source is None or tensor is None:
                continue
            grid = grid_of(node)
            if grid is None or not isinstance(node.graph, ir.Graph):
                report.skip(node, "the scale is computed at run time, or this is a function, which has no initializers")
                continue
            key = (source, grid, node.graph)
            if key in made:
                edit.replace(node.outputs[0], made[key])
                edit.remove_unused(node.outputs)
            else:
                made[key] = _fold(node, node.graph, _quantized(tensor, grid))
            report.changed += 1


def _quantized(tensor: ir.TensorProtocol, grid: Grid) -> ir.TensorProtocol:
    def integers() -> ir.Tensor[np.ndarray]:
        return ir.Tensor(grid.quantize(tensor.numpy()), dtype=grid.dtype)

    if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes >= STREAMED:
        return ir.LazyTensor(integers, dtype=grid.dtype, shape=ir.Shape(tensor.shape))
    return integers()


def _fold(node: ir.Node, scope: ir.Graph, integers: ir.TensorProtocol) -> ir.Value:
    out = node.outputs[0]
    name, public = out.name, out.is_graph_output()
    value = edit.add_const(scope, integers, f"{name}_folded")
    edit.replace(out, value)
    edit.remove_unused([out])
    if not public:
        value.name = name
    return value
