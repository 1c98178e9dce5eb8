"""``graphpress::DynamicQuantizeToken(x, bits=8) -> (q, scale)``: one symmetric scale for each row of the last axis.

``q`` is int8 whatever the bits. With 8 bits the largest magnitude of a row becomes 127. Below, where a code is worth
more, all codes are used and no element is further than half a step from its own: the largest is 2^(bits-1) - 1/2 steps,
as for weights (``graphpress.scale``).
"""

# mypy: disable-error-code="arg-type, type-var"

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphpress.graph import edit
from graphpress.ops.base import DOMAIN, VERSION, Op, expect

if TYPE_CHECKING:
    from collections.abc import Callable


BITS = range(2, 9)


def bits_of(node: ir.Node) -> int:
    """The bits of the codes."""
    return int(edit.attribute(node, "bits", 8))


def steps(bits: int) -> float:
    """How many steps the largest magnitude of a row is."""
    return 127.0 if bits == 8 else 2.0 ** (bits - 1) - 0.5


@cache
def _body() -> Any:
    """As a protobuf; onnxscript is slow to load."""
    from onnxscript import opset18 as op
    from onnxscript import script
    from onnxscript.values import Opset

    @script(Opset(DOMAIN, VERSION), default_opset=op)
    def DynamicQuantizeToken(x, bits: int = 8):  # type: ignore[no-untyped-def]  # noqa: N802
        """Quantize rows; a row of zeros gets the smallest normal scale, so q is 0 and nothing is divided by 0."""
        width = op.Cast(bits, to=1)
        half = op.Pow(2.0, op.Sub(width, 1.0))
        steps = op.Sub(half, op.Where(op.Less(width, 8.0), 0.5, 1.0))
        largest = op.ReduceMax(op.Abs(x), [-1], keepdims=1)
        scale = op.Max(op.Div(largest, steps), 1.1754944e-38)
        q = op.Cast(op.Min(op.Round(op.Div(x, scale)), op.Sub(half, 1.0)), to=3)
        return q, scale

    return DynamicQuantizeToken.to_function_proto()


def _function() -> ir.Function:
    return ir.serde.deserialize_function(_body())


def _verify(node: ir.Node) -> None:
    expect(node, len(node.inputs) == 1 and node.inputs[0] is not None, "takes one input")
    expect(node, len(node.outputs) == 2, "gives two outputs, integers and scales")
    expect(node, set(node.attributes) <= {"bits"}, "takes no attribute but bits")
    expect(node, bits_of(node) in BITS, f"takes 2 to 8 bits, not {bits_of(node)}")
    (x,), (q, scale) = node.inputs, node.outputs
    assert x is not None
    expect(node, x.dtype in (None, ir.DataType.FLOAT), f"takes float32, not {x.dtype}")
    expect(node, q.dtype in (None, ir.DataType.INT8), f"gives int8, not {q.dtype}")
    expect(node, scale.dtype in (None, ir.DataType.FLOAT), f"gives float32 scales, not {scale.dtype}")
    expect(node, x.shape is None or x.shape.rank() > 0, "takes at least one axis")


def _kernel() -> Callable[..., Any]:
    import torch

    def dynamic_quantize_token(x: torch.Tensor, *, bits: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
        scale = (x.abs().amax(-1, keepdim=True) / steps(bits)).clamp_min(torch.finfo(torch.float32).tiny)
        return torch.round(x / scale).clamp_max(2 ** (bits - 1) - 1).to(torch.int8), scale

    return dynamic_quantize_token


OP = Op("DynamicQuantizeToken", _function, 18, _verify, _kernel)
