"""Store the bias of a quantized Conv or Gemm as int32 at the step of its accumulator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import edit, quantized
from graphpress.graph.grid import DEQUANTIZE, Grid, grid_of, is_dequantize, is_quantize
from graphpress.graph.quantized import Steps
from graphpress.types import Numerics, Stage

LIMIT = 2.0**30  # half of int32: as much is left for the sum of products


@dataclass(frozen=True)
class FoldBias(Pass):
    """Turn a float bias into an int32 initializer behind DQ(scale = s_x * s_w[c], zero point 0).

    Lossy, as any quantization, but at the accumulator's own step: each output moves by at most s_x * s_w[c] / 2 before
    it is quantized. Where that step is so small that the bias would take over 2**30 of them, the weight scale of the
    channel is enlarged, as ONNX Runtime's quantizer does, if the weight is still float behind its Q or the channel is
    all zero.

    It must come after everything that may change the scale of x: a runtime takes the bias at s_x * s_w without looking.
    """

    name = "fold-bias"
    numerics = Numerics.LOSSY
    needs = (Stage.QDQ,)

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        for node in edit.nodes(model):
            if node.domain != "" or node.op_type not in ("Conv", "Gemm") or not _has_bias(node):
                continue
            why_not = _fold(node)
            if why_not:
                report.skip(node, why_not)
            else:
                report.changed += 1


def _has_bias(node: ir.Node) -> bool:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return bias is not None and not is_dequantize(bias.producer())


def _fold(node: ir.Node) -> str | None:
    """None when done, else why not."""
    bias_value, scope = node.inputs[2], node.graph
    x, w = (v.producer() if v is not None else None for v in node.inputs[:2])
    if not is_dequantize(x) or not quantized.decodes(w):
        return "input or weight is not quantized"
    assert x is not None and w is not None and bias_value is not None
    x_grid, w_grid, bias = grid_of(x), quantized.steps(w), edit.constant(bias_value)
    if bias is None or not isinstance(scope, ir.Graph):
        return "the bias is computed at run time"
    if x_grid is None or x_grid.axis is not None or w_grid is None:
        return "a scale is computed at run time or not per tensor, or the weight has no even steps"
    vector = _as_vector(node, w, w_grid, bias)
    if isinstance(vector, str):
        return vector
    s_w = _roomy_scale(w, w_grid, np.abs(vector), float(x_grid.scale.item()))
    if isinstance(s_w, str):
        return s_w
    scale = np.asarray(x_grid.scale.reshape(()) * s_w.reshape(w_grid.scale.shape if s_w.size > 1 else ()))
    _write(node, scope, bias_value, vector, scale)
    return None


def _as_vector(node: ir.Node, w: ir.Node, grid: Steps, bias: np.ndarray) -> np.ndarray | str:
    """The bias as float32 [channels], or why it cannot be."""
    gemm = node.op_type == "Gemm"
    axis = 0 if not gemm or edit.attribute(node, "transB", 0) else 1
    if gemm and (edit.attribute(node, "alpha", 1.0), edit.attribute(node, "beta", 1.0)) != (1.0, 1.0):
        return "alpha or beta is not 1"
    shape = _shape(w.inputs[0])
    channels = shape[axis] if shape is not None and len(shape) > axis else None
    if shape is None or not isinstance(channels, int):
        return "the shape of the weight is not known"
    if grid.block or (grid.axis is not None and grid.axis % len(shape) != axis):
        return "the weight's scales do not go by output channel"
    if bias.dtype != np.float32 or bias.ndim > 2 or (bias.ndim == 2 and bias.shape[0] != 1):
        return "the bias is not one float32 number a channel"
    return np.broadcast_to(bias.reshape(-1), (channels,))


def _shape(stored: ir.Value | None) -> ir.Shape | None:
    """The shape of a weight, which its Q has too where nobody wrote it down behind it."""
    if stored is None or stored.shape is not None:
        return stored.shape if stored is not None else None
    quantize = stored.producer()
    return quantize.inputs[0].shape if is_quantize(quantize) and quantize.inputs[0] is not None else None


def _roomy_scale(w: ir.Node, grid: Steps, bias: np.ndarray, s_x: float) -> np.ndarray | str:
    """The weight's scale, enlarged (in the graph too) where the bias would overflow; or why it cannot be."""
    least = (bias.astype(np.float64) / (s_x * LIMIT)).astype(np.float32)
    least = np.maximum(least, np.float32(np.finfo(np.float32).tiny / s_x))  # the product must stay a normal number
    tight = grid.scale.reshape(-1) < least
    if not tight.any():
        return grid.scale
    where = f"the bias of channel {int(np.argmax(tight))} overflows int32"
    if grid.axis is None:
        return f"{where}, and the weight has one scale for all channels"
    if not is_dequantize(w) or (stored := grid_of(w)) is None:
        return f"{where}, and the weight is in a format whose steps stay"
    source = w.inputs[0]
    quantize = source.producer() if source is not None else None
    shared = any(v is None or len(v.uses()) > 1 or v.is_graph_output() for v in (source, w.outputs[0]))
    if shared or not (is_quantize(quantize) or _dead(source, stored, tight)):
        return f"{where}, and the weight is stored as integers or shared"
    scale = np.where(tight, least * np.float32(1.0001), grid.scale).astype(np.float32)
    assert isinstance(w.graph, ir.Graph) and w.inputs[1] is not None
    value = edit.add_const(w.graph, scale, f"{w.inputs[1].name}_roomy")
    for node in filter(None, (quantize, w)):
        edit.set_input(node, 1, value)
    edit.remove_unused([stored.values[0]])
    return scale


def _dead(source: ir.Value | None, grid: Grid, channels: np.ndarray) -> bool:
    """Whether the stored integers of these channels all stand for zero, so that any scale means the same."""
    stored = edit.constant(source)
    if stored is None or grid.axis is None:
        return False
    rows = np.moveaxis(stored, grid.axis, 0)[channels].reshape(int(channels.sum()), -1).astype(np.int32)
    return bool(np.all(rows == grid.zero.reshape(-1)[channels].astype(np.int32)[:, None]))


def _write(node: ir.Node, scope: ir.Graph, old: ir.Value, bias: np.ndarray, scale: np.ndarray) -> None:
    steps = np.rint(bias.astype(np.float64) / scale.astype(np.float64)).astype(np.int32)
    parts = {"quantized": steps, "scale": scale, "zero_point": np.zeros(scale.shape, np.int32)}
    inputs = [edit.add_const(scope, ir.Tensor(array), f"{old.name}_{part}") for part, array in parts.items()]
    made = edit.new_node(DEQUANTIZE, inputs, {"axis": 0}, before=node, origin=node)
    made.outputs[0].shape, made.outputs[0].type = ir.Shape(steps.shape), ir.TensorType(ir.DataType.FLOAT)
    edit.set_input(node, 2, made.outputs[0])
    edit.remove_unused([old])
