"""``graphpress::LookupQuantize(x, scale, bounds) -> codes``: how many bounds ``x / scale`` lies above, from the lowest.

For levels of any spacing (see ``LookupDequantize``): a code is ``lowest`` plus the number of bounds below. Bounds
ascend; there are 255, those beyond the codes being infinite. The scale has the rank of
``x``, as there.
"""

# mypy: disable-error-code="arg-type, type-var"

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphpress.arrays import array_namespace, is_numpy_array
from graphpress.graph import edit
from graphpress.ops.base import DOMAIN, VERSION, Op, expect
from graphpress.ops.lookup_dequantize import CODES, Array, check_lookup, repeated_scale

if TYPE_CHECKING:
    from collections.abc import Callable

BOUNDS = 255


def search(steps: Array, bounds: Array) -> Array:
    """How many bounds are below each element: integers of its shape."""
    xp = array_namespace(steps)
    found = xp.searchsorted(xp.astype(bounds, steps.dtype), xp.reshape(steps, (-1,)), side="left")
    return xp.reshape(found, steps.shape)


def _steps(x: Array, scale: Array, axis: int, block_size: int) -> Array:
    xp = array_namespace(scale)
    return xp.astype(x / repeated_scale(scale, x.shape, axis, block_size), xp.float32)


def compute(
    x: Array, scale: Array, bounds: Array, *, lowest: int, dtype: int, axis: int = 0, block_size: int = 0
) -> Array:
    """The codes: of the storage type in numpy, of int8 or uint8 in torch, which has no narrower one."""
    codes = search(_steps(x, scale, axis, block_size), bounds) + lowest
    if is_numpy_array(codes):
        return codes.astype(ir.DataType(dtype).numpy())
    xp = array_namespace(codes)
    return xp.astype(codes, xp.int8 if lowest else xp.uint8)


def _straight() -> Callable[..., Any]:
    def straight(
        x: Array, scale: Array, bounds: Array, *, lowest: int, dtype: int, axis: int = 0, block_size: int = 0
    ) -> Array:
        """Codes as floats, with the gradient of ``x / scale`` up to half a level beyond the outermost bounds."""
        steps = _steps(x, scale, axis, block_size)
        codes = (search(steps.detach(), bounds) + lowest).to(steps.dtype)
        finite = bounds[bounds.isfinite()]
        reach = (finite[-1] - finite[-2]) / 2 if len(finite) > 1 else finite.new_tensor(math.inf)
        inside = (steps > finite[0] - reach) & (steps < finite[-1] + reach)
        return codes + (steps - steps.detach()) * inside

    return straight


def _verify(node: ir.Node) -> None:
    check_lookup(node, ("x", "scale", "bounds"))
    tensor = edit.constant_tensor(node.inputs[2])
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
    def LookupQuantize(x, scale, bounds, lowest: int, dtype: int, axis: int = 0, block_size: int = 0):  # type: ignore[no-untyped-def]  # noqa: N802
        """Repeat the scale along its axis; then a binary search, eight halvings."""
        along = op.Cast(axis, to=7)
        count = op.Gather(op.Shape(x), along)
        last = op.Sub(op.Gather(op.Shape(scale), along), 1)
        group = op.Min(op.Div(op.Range(0, count, 1), op.Max(op.Cast(block_size, to=7), 1)), last)
        steps = op.Cast(op.Div(x, op.Gather(scale, group, axis=axis)), to=1)
        i7 = op.Where(op.Greater(steps, op.Gather(bounds, 127)), 128, 0)
        i6 = op.Where(op.Greater(steps, op.Gather(bounds, op.Add(i7, 63))), op.Add(i7, 64), i7)
        i5 = op.Where(op.Greater(steps, op.Gather(bounds, op.Add(i6, 31))), op.Add(i6, 32), i6)
        i4 = op.Where(op.Greater(steps, op.Gather(bounds, op.Add(i5, 15))), op.Add(i5, 16), i5)
        i3 = op.Where(op.Greater(steps, op.Gather(bounds, op.Add(i4, 7))), op.Add(i4, 8), i4)
        i2 = op.Where(op.Greater(steps, op.Gather(bounds, op.Add(i3, 3))), op.Add(i3, 4), i3)
        i1 = op.Where(op.Greater(steps, op.Gather(bounds, op.Add(i2, 1))), op.Add(i2, 2), i2)
        i0 = op.Where(op.Greater(steps, op.Gather(bounds, i1)), op.Add(i1, 1), i1)
        return op.Cast(op.Cast(op.Add(i0, op.Cast(lowest, to=7)), to=1), to=dtype)

    return LookupQuantize.to_function_proto()


OP = Op(
    "LookupQuantize", lambda: ir.serde.deserialize_function(_body()), 21, _verify,
    lambda: compute, "encode", compute, _straight,
)  # fmt: skip
