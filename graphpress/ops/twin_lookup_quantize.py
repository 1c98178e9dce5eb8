"""``graphpress::TwinLookupQuantize(x, scale, negative, row, negative_row, bounds) -> codes``: the inverse of
``TwinLookupDequantize``.

``x`` below 0 is divided by ``negative`` and compared with row ``negative_row`` of the bounds, other numbers by
``scale`` and with ``row``: a code is ``lowest`` plus the number of bounds below. Rows ascend and have 15 bounds.
"""

# mypy: disable-error-code="arg-type, type-var"

from __future__ import annotations

from functools import cache
from typing import Any

import onnx_ir as ir

from graphpress.arrays import array_namespace, is_numpy_array
from graphpress.graph import edit
from graphpress.ops.base import DOMAIN, VERSION, Op, expect
from graphpress.ops.lookup_dequantize import Array
from graphpress.ops.twin_lookup_dequantize import CODES, at, check_twin, of_sign

BOUNDS = 15


def search_rows(steps: Array, bounds: Array, row: Array) -> Array:
    """How many bounds of its row, of 15, are below each element: integers of its shape."""
    xp = array_namespace(steps)
    found = xp.zeros_like(row)
    for half in (8, 4, 2, 1):
        found = found + xp.astype(steps > at(bounds, row, found + (half - 1)), found.dtype) * half
    return found


def compute(
    x: Array, scale: Array, negative: Array, row: Array, negative_row: Array, bounds: Array,
    *, lowest: int, dtype: int, axis: int = 0, block_size: int = 0,
) -> Array:  # fmt: skip
    """The codes: of the storage type in numpy, of int8 in torch, which has no narrower one."""
    xp = array_namespace(x)
    steps, line = _placed(x, scale, negative, row, negative_row, axis, block_size)
    codes = search_rows(steps, bounds, line) + lowest
    return codes.astype(ir.DataType(dtype).numpy()) if is_numpy_array(codes) else xp.astype(codes, xp.int8)


def _placed(
    x: Array, scale: Array, negative: Array, row: Array, negative_row: Array, axis: int, block_size: int
) -> tuple[Array, Array]:
    """(``x`` in scales, rows of the bounds), each of the sign of its element."""
    xp = array_namespace(x)
    steps = xp.astype(x / of_sign(x < 0, scale, negative, axis, block_size), xp.float32)
    line = xp.astype(of_sign(x < 0, row, negative_row, axis, block_size), xp.int64)
    return steps, xp.broadcast_to(line, x.shape)


def _straight(
    x: Array, scale: Array, negative: Array, row: Array, negative_row: Array, bounds: Array,
    *, lowest: int, dtype: int, axis: int = 0, block_size: int = 0,
) -> Array:  # fmt: skip
    """Codes as floats, with the gradient of ``x`` in scales up to a scale."""
    steps, line = _placed(x, scale, negative, row, negative_row, axis, block_size)
    codes = (search_rows(steps.detach(), bounds, line) + lowest).to(steps.dtype)
    inside = steps.detach().abs() < 1
    return codes + (steps - steps.detach()) * inside


def _verify(node: ir.Node) -> None:
    check_twin(node, "bounds")
    tensor = edit.constant_tensor(node.inputs[5])
    assert tensor is not None
    expect(node, tensor.shape[1] == BOUNDS, f"each row has {BOUNDS} bounds")
    dtype = edit.attribute(node, "dtype")
    expect(node, dtype in [c.value for c in CODES], "'dtype' is a signed type of codes of 4 or 8 bits")
    given = node.outputs[0].dtype
    expect(node, given in (None, ir.DataType(dtype)), f"gives {ir.DataType(dtype)}, not {given}")


@cache
def _body() -> Any:
    """As a protobuf; onnxscript is slow to load."""
    from onnxscript import opset21 as op
    from onnxscript import script
    from onnxscript.values import Opset

    @script(Opset(DOMAIN, VERSION), default_opset=op)
    def TwinLookupQuantize(  # type: ignore[no-untyped-def]  # noqa: N802
        x, scale, negative, row, negative_row, bounds, lowest: int, dtype: int, axis: int = 0, block_size: int = 0
    ):
        """Repeat scale and row along their axis, those of the sign; then a binary search, four halvings."""
        along = op.Cast(axis, to=7)
        count = op.Gather(op.Shape(x), along)
        last = op.Sub(op.Gather(op.Shape(scale), along), 1)
        group = op.Min(op.Div(op.Range(0, count, 1), op.Max(op.Cast(block_size, to=7), 1)), last)
        below = op.Less(x, op.CastLike(0.0, x))
        factor = op.Where(below, op.Gather(negative, group, axis=axis), op.Gather(scale, group, axis=axis))
        steps = op.Cast(op.Div(x, factor), to=1)
        upper = op.Gather(op.Cast(row, to=7), group, axis=axis)
        start = op.Mul(op.Where(below, op.Gather(op.Cast(negative_row, to=7), group, axis=axis), upper), 15)
        flat = op.Reshape(bounds, op.Constant(value_ints=[-1]))
        i3 = op.Where(op.Greater(steps, op.Gather(flat, op.Add(start, 7))), 8, 0)
        i2 = op.Where(op.Greater(steps, op.Gather(flat, op.Add(start, op.Add(i3, 3)))), op.Add(i3, 4), i3)
        i1 = op.Where(op.Greater(steps, op.Gather(flat, op.Add(start, op.Add(i2, 1)))), op.Add(i2, 2), i2)
        i0 = op.Where(op.Greater(steps, op.Gather(flat, op.Add(start, i1))), op.Add(i1, 1), i1)
        return op.Cast(op.Cast(op.Add(i0, op.Cast(lowest, to=7)), to=1), to=dtype)

    return TwinLookupQuantize.to_function_proto()


OP = Op(
    "TwinLookupQuantize", lambda: ir.serde.deserialize_function(_body()), 21, _verify,
    lambda: compute, "encode", compute, lambda: _straight,
)  # fmt: skip
