"""``graphpress::DynamicQuantizeToken(x) -> (q, scale)``: one symmetric int8 scale for each row of the last axis."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from onnxscript import opset18 as op
from onnxscript import script
from onnxscript.values import Opset

from graphpress.ops.base import DOMAIN, VERSION, Op, expect

if TYPE_CHECKING:
    from collections.abc import Callable

_dialect = Opset(DOMAIN, VERSION)


@script(_dialect, default_opset=op)
def DynamicQuantizeToken(x):  # type: ignore[no-untyped-def]  # noqa: N802
    """Quantize rows; a row of zeros gets the smallest normal scale, so q is 0 and nothing is divided by 0."""
    largest = op.ReduceMax(op.Abs(x), [-1], keepdims=1)  # type: ignore[arg-type]  # becomes a Constant
    scale = op.Max(op.Div(largest, 127.0), 1.1754944e-38)
    q = op.Cast(op.Round(op.Div(x, scale)), to=3)
    return q, scale


def _function() -> ir.Function:
    return ir.serde.deserialize_function(DynamicQuantizeToken.to_function_proto())


def _verify(node: ir.Node) -> None:
    expect(node, len(node.inputs) == 1 and node.inputs[0] is not None, "takes one input")
    expect(node, len(node.outputs) == 2, "gives two outputs, integers and scales")
    expect(node, not node.attributes, "takes no attributes")
    (x,), (q, scale) = node.inputs, node.outputs
    assert x is not None
    expect(node, x.dtype in (None, ir.DataType.FLOAT), f"takes float32, not {x.dtype}")
    expect(node, q.dtype in (None, ir.DataType.INT8), f"gives int8, not {q.dtype}")
    expect(node, scale.dtype in (None, ir.DataType.FLOAT), f"gives float32 scales, not {scale.dtype}")
    expect(node, x.shape is None or x.shape.rank() > 0, "takes at least one axis")


def _kernel() -> Callable[..., Any]:
    import torch

    def dynamic_quantize_token(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale = (x.abs().amax(-1, keepdim=True) / 127.0).clamp_min(torch.finfo(torch.float32).tiny)
        return torch.round(x / scale).to(torch.int8), scale

    return dynamic_quantize_token


def _cost(node: ir.Node) -> int | None:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None or not shape.is_static():
        return None
    return 4 * math.prod(shape.numpy())  # abs, max, divide, round


OP = Op("DynamicQuantizeToken", _function, 18, _verify, _kernel, _cost)
