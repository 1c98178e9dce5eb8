"""``graphpress::SumLookupQuantize(x, scale, second, bounds, second_bounds) -> codes``: the inverse of
``SumLookupDequantize``.

A code is ``lowest`` plus the number of bounds ``bounds[i] * scale + second_bounds[i] * second`` below ``x``: midway
between numbers, they give the nearest one. There are 255, ascending, those beyond the codes being infinite. Codes of
2 bits are given as int8 (``stored`` says how a file holds them): ONNX Runtime 1.32 folds a Cast to INT2 and refuses it.
"""

# mypy: disable-error-code="arg-type, type-var"

from __future__ import annotations

from functools import cache
from typing import Any

import onnx_ir as ir

from graphpress.arrays import array_namespace, is_numpy_array
from graphpress.graph import edit
from graphpress.ops.base import DOMAIN, VERSION, Op, expect
from graphpress.ops.lookup_dequantize import CODES as WIDE_CODES
from graphpress.ops.lookup_dequantize import Array, repeated_scale
from graphpress.ops.lookup_quantize import BOUNDS
from graphpress.ops.sum_lookup_dequantize import CODES, check_terms


def search_terms(x: Array, scale: Array, second: Array, bounds: Array, second_bounds: Array, bits: int) -> Array:
    """How many bounds, of those of codes of some bits, are below each element: integers of its shape."""
    xp = array_namespace(x)
    found = xp.zeros_like(x, dtype=xp.int64)
    for half in (1 << i for i in reversed(range(bits))):
        at = found + (half - 1)
        above = x > bounds[at] * scale + second_bounds[at] * second
        found = found + xp.astype(above, xp.int64) * half
    return found


def compute(
    x: Array, scale: Array, second: Array, bounds: Array, second_bounds: Array,
    *, lowest: int, dtype: int, axis: int = 0, block_size: int = 0, stored: int = 0,
) -> Array:  # fmt: skip
    """The codes: of the storage type in numpy, of int8 or uint8 in torch, which has no narrower one."""
    xp = array_namespace(x)
    wide, *scales = (
        xp.astype(a, xp.float32) for a in (x, *(repeated_scale(s, x.shape, axis, block_size) for s in (scale, second)))
    )
    bits = ir.DataType(dtype).bitwidth
    codes = search_terms(wide, scales[0], scales[1], bounds, second_bounds, bits) + lowest
    if is_numpy_array(codes):
        return codes.astype(ir.DataType(dtype).numpy())
    return xp.astype(codes, xp.int8 if lowest else xp.uint8)


def _straight(
    x: Array, scale: Array, second: Array, bounds: Array, second_bounds: Array,
    *, lowest: int, dtype: int, axis: int = 0, block_size: int = 0, stored: int = 0,
) -> Array:  # fmt: skip
    """Codes as floats, with the gradient of ``x / scale`` between the outermost bounds."""
    codes = compute(
        x.detach(), scale.detach(), second.detach(), bounds, second_bounds, lowest=lowest, dtype=dtype, axis=axis,
        block_size=block_size,
    )  # fmt: skip
    steps = x / repeated_scale(scale, x.shape, axis, block_size)
    ends = codes.float() - lowest
    inside = (ends > 0) & (ends < (1 << ir.DataType(stored or dtype).bitwidth) - 1)
    return codes.to(steps.dtype) + (steps - steps.detach()) * inside


def _verify(node: ir.Node) -> None:
    check_terms(node, ("bounds", "second_bounds"))
    tensors = [edit.constant_tensor(v) for v in node.inputs[3:]]
    expect(node, all(t is not None and t.size == BOUNDS for t in tensors), f"takes {BOUNDS} constant bounds")
    dtype = edit.attribute(node, "dtype")
    expect(node, dtype in [c.value for c in WIDE_CODES], "'dtype' is a type of codes of 4 or 8 bits")
    expect(node, edit.attribute(node, "stored", 0) in [0, *(c.value for c in CODES)], "'stored' is a type of codes")
    given = node.outputs[0].dtype
    expect(node, given in (None, ir.DataType(dtype)), f"gives {ir.DataType(dtype)}, not {given}")


@cache
def _body() -> Any:
    """As a protobuf; onnxscript is slow to load."""
    from onnxscript import opset21 as op
    from onnxscript import script
    from onnxscript.values import Opset

    @script(Opset(DOMAIN, VERSION), default_opset=op)
    def SumLookupQuantize(  # type: ignore[no-untyped-def]  # noqa: N802
        x,
        scale,
        second,
        bounds,
        second_bounds,
        lowest: int,
        dtype: int,
        axis: int = 0,
        block_size: int = 0,
        stored: int = 0,
    ):
        """Repeat both scales along their axis; then a binary search, eight halvings."""
        along = op.Cast(axis, to=7)
        count = op.Gather(op.Shape(x), along)
        last = op.Sub(op.Gather(op.Shape(scale), along), 1)
        group = op.Min(op.Div(op.Range(0, count, 1), op.Max(op.Cast(block_size, to=7), 1)), last)
        v = op.Cast(x, to=1)
        s = op.Cast(op.Gather(scale, group, axis=axis), to=1)
        t = op.Cast(op.Gather(second, group, axis=axis), to=1)
        b7 = op.Add(op.Mul(op.Gather(bounds, 127), s), op.Mul(op.Gather(second_bounds, 127), t))
        i7 = op.Where(op.Greater(v, b7), 128, 0)
        p6 = op.Add(i7, 63)
        b6 = op.Add(op.Mul(op.Gather(bounds, p6), s), op.Mul(op.Gather(second_bounds, p6), t))
        i6 = op.Where(op.Greater(v, b6), op.Add(i7, 64), i7)
        p5 = op.Add(i6, 31)
        b5 = op.Add(op.Mul(op.Gather(bounds, p5), s), op.Mul(op.Gather(second_bounds, p5), t))
        i5 = op.Where(op.Greater(v, b5), op.Add(i6, 32), i6)
        p4 = op.Add(i5, 15)
        b4 = op.Add(op.Mul(op.Gather(bounds, p4), s), op.Mul(op.Gather(second_bounds, p4), t))
        i4 = op.Where(op.Greater(v, b4), op.Add(i5, 16), i5)
        p3 = op.Add(i4, 7)
        b3 = op.Add(op.Mul(op.Gather(bounds, p3), s), op.Mul(op.Gather(second_bounds, p3), t))
        i3 = op.Where(op.Greater(v, b3), op.Add(i4, 8), i4)
        p2 = op.Add(i3, 3)
        b2 = op.Add(op.Mul(op.Gather(bounds, p2), s), op.Mul(op.Gather(second_bounds, p2), t))
        i2 = op.Where(op.Greater(v, b2), op.Add(i3, 4), i3)
        p1 = op.Add(i2, 1)
        b1 = op.Add(op.Mul(op.Gather(bounds, p1), s), op.Mul(op.Gather(second_bounds, p1), t))
        i1 = op.Where(op.Greater(v, b1), op.Add(i2, 2), i2)
        b0 = op.Add(op.Mul(op.Gather(bounds, i1), s), op.Mul(op.Gather(second_bounds, i1), t))
        i0 = op.Where(op.Greater(v, b0), op.Add(i1, 1), i1)
        return op.Cast(op.Cast(op.Add(i0, op.Cast(lowest, to=7)), to=1), to=dtype)

    return SumLookupQuantize.to_function_proto()


OP = Op(
    "SumLookupQuantize", lambda: ir.serde.deserialize_function(_body()), 21, _verify,
    lambda: compute, "encode", compute, lambda: _straight,
)  # fmt: skip
