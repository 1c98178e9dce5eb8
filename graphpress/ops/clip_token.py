"""``graphpress::ClipToken(x, share) -> y``: each row of the last axis within ``share`` of its largest magnitude.

In front of ``DynamicQuantizeToken`` the range of a row shrinks with it: few elements are cut, all others get finer
steps (QuaRot, arXiv:2404.00456, section 5, clips activations to 0.9 of it).
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


@cache
def _body() -> Any:
    """As a protobuf; onnxscript is slow to load."""
    from onnxscript import opset18 as op
    from onnxscript import script
    from onnxscript.values import Opset

    @script(Opset(DOMAIN, VERSION), default_opset=op)
    def ClipToken(x, share: float):  # type: ignore[no-untyped-def]  # noqa: N802
        """A row of zeros stays one."""
        most = op.Mul(op.ReduceMax(op.Abs(x), [-1], keepdims=1), share)
        return op.Max(op.Min(x, most), op.Neg(most))

    return ClipToken.to_function_proto()


def _function() -> ir.Function:
    return ir.serde.deserialize_function(_body())


def _verify(node: ir.Node) -> None:
    expect(node, len(node.inputs) == 1 and node.inputs[0] is not None, "takes one input")
    expect(node, len(node.outputs) == 1, "gives one output")
    expect(node, set(node.attributes) == {"share"}, "takes the attribute share and no other")
    share = float(edit.attribute(node, "share", 0.0))
    expect(node, 0 < share <= 1, f"keeps a share in (0, 1], not {share:g}")
    (x,) = node.inputs
    assert x is not None
    expect(node, x.dtype in (None, ir.DataType.FLOAT), f"takes float32, not {x.dtype}")
    expect(node, x.shape is None or x.shape.rank() > 0, "takes at least one axis")


def _kernel() -> Callable[..., Any]:
    import torch

    def clip_token(x: torch.Tensor, *, share: float) -> torch.Tensor:
        most = x.abs().amax(-1, keepdim=True) * share
        return x.minimum(most).maximum(-most)

    return clip_token


OP = Op("ClipToken", _function, 18, _verify, _kernel)
