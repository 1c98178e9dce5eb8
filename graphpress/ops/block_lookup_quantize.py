"""``graphpress::BlockLookupQuantize(x, scale, outer, bounds) -> codes``: the inverse of ``BlockLookupDequantize``.

A code is ``lowest`` plus the number of bounds below ``x / (scale * outer)``. Bounds ascend; there are 255, those beyond
the codes being infinite.
"""

# mypy: disable-error-code="arg-type, type-var"

from __future__ import annotations

from functools import cache
from typing import Any

import onnx_ir as ir

from graphpress.arrays import array_namespace, is_numpy_array
from graphpress.graph import edit
from graphpress.ops.base import DOMAIN, VERSION, Op, expect
from graphpress.ops.block_lookup_dequantize import check_blocks, whole_scale
from graphpress.ops.lookup_dequantize import CODES, Array
from graphpress.ops.lookup_quantize import BOUNDS, search


def compute(
    x: Array, scale: Array, outer: Array, bounds: Array, *, lowest: int, dtype: int, axis: int = 0, block_size: int = 0
) -> Array:
    """The codes: of the storage type in numpy, of int8 or uint8 in torch, which has no narrower one."""
    xp = array_namespace(x)
    steps = xp.astype(x, xp.float32) / whole_scale(scale, outer, x.shape, axis, block_size)
    codes = search(steps, bounds) + lowest
    if is_numpy_array(codes):
        return codes.astype(ir.DataType(dtype).numpy())
    return xp.astype(codes, xp.int8 if lowest else xp.uint8)


def _straight(
    x: Array, scale: Array, outer: Array, bounds: Array, *, lowest: int, dtype: int, axis: int = 0, block_size: int = 0
) -> Array:
    """Codes as floats, with the gradient of ``x`` in scales between the outermost bounds."""
    steps = x / whole_scale(scale, outer, x.shape, axis, block_size)
    codes = (search(steps.detach(), bounds) + lowest).to(steps.dtype)
    finite = bounds[bounds.isfinite()]
    inside = (steps > finite[0]) & (steps < finite[-1])
    return codes + (steps - steps.detach()) * inside


def _verify(node: ir.Node) -> None:
    check_blocks(node, "bounds")
    tensor = edit.constant_tensor(node.inputs[3])
    expect(node, tensor is not None and tensor.size == BOUNDS, f"takes {BOUNDS} constant bounds")
    dtype = edit.attribute(node, "dtype")
    expect(node, dtype in [c.value for c in CODES], "'dtype' is a type of codes of 4 or 8 bits")
    given = node.outputs[0].dtype
    expect(node, given in (None, ir.DataType(dtype)), f"gives {ir.DataType(dtype)}, not {given}")


@cache
def _body() -> Any:
    """As a protobuf; onnxscript is slow to load."""
    from onnxscript import opset21 as op
    from onnxscript import script
    from onnxscript.values import Opset

    @script(Opset(DOMAIN, VERSION), default_opset=op)
    def BlockLookupQuantize(x, scale, outer, bounds, lowest: int, dtype: int, axis: int = 0, block_size: int = 0):  # type: ignore[no-untyped-def]  # noqa: N802
        """Multiply both scales and repeat them along their axis; then a binary search, eight halvings."""
        along = op.Cast(axis, to=7)
        count = op.Gather(op.Shape(x), along)
        last = op.Sub(op.Gather(op.Shape(scale), along), 1)
        group = op.Min(op.Div(op.Range(0, count, 1), op.Max(op.Cast(block_size, to=7), 1)), last)
        both = op.Mul(op.Cast(scale, to=1), outer)
        steps = op.Div(op.Cast(x, to=1), op.Gather(both, group, axis=axis))
        i7 = op.Where(op.Greater(steps, op.Gather(bounds, 127)), 128, 0)
        i6 = op.Where(op.Greater(steps, op.Gather(bounds, op.Add(i7, 63))), op.Add(i7, 64), i7)
        i5 = op.Where(op.Greater(steps, op.Gather(bounds, op.Add(i6, 31))), op.Add(i6, 32), i6)
        i4 = op.Where(op.Greater(steps, op.Gather(bounds, op.Add(i5, 15))), op.Add(i5, 16), i5)
        i3 = op.Where(op.Greater(steps, op.Gather(bounds, op.Add(i4, 7))), op.Add(i4, 8), i4)
        i2 = op.Where(op.Greater(steps, op.Gather(bounds, op.Add(i3, 3))), op.Add(i3, 4), i3)
        i1 = op.Where(op.Greater(steps, op.Gather(bounds, op.Add(i2, 1))), op.Add(i2, 2), i2)
        i0 = op.Where(op.Greater(steps, op.Gather(bounds, i1)), op.Add(i1, 1), i1)
        return op.Cast(op.Cast(op.Add(i0, op.Cast(lowest, to=7)), to=1), to=dtype)

    return BlockLookupQuantize.to_function_proto()


OP = Op(
    "BlockLookupQuantize", lambda: ir.serde.deserialize_function(_body()), 21, _verify,
    lambda: compute, "encode", compute, lambda: _straight,
)  # fmt: skip
