"""``graphpress::SignQuantize(x, scale) -> codes``: the sign of each number, or of those that are large enough.

-1 or 1, 1 for 0, where ``share`` is 0; else 0 where ``|x| < share * scale``. DequantizeLinear gives numbers back, and
the scale lies along ``x`` as that has it.
"""

# mypy: disable-error-code="arg-type, type-var"

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import onnx_ir as ir

from graphpress.arrays import array_namespace, is_numpy_array
from graphpress.graph import edit
from graphpress.ops.base import DOMAIN, VERSION, Op, expect

if TYPE_CHECKING:
    pass

Array: TypeAlias = Any
CODES = (ir.DataType.INT8, ir.DataType.INT4)


def signs(steps: Array, share: float) -> Array:
    """-1, 0 and 1 as floats of ``steps``, which are numbers in scales."""
    xp = array_namespace(steps)
    one = xp.ones_like(steps)
    found = xp.where(steps < 0, -one, one)
    return xp.where(xp.abs(steps) < share, xp.zeros_like(steps), found)


def _spread(scale: Array, shape: tuple[int, ...], axis: int, block_size: int) -> Array:
    xp = array_namespace(scale)
    if block_size:
        return xp.repeat(scale, block_size, axis=axis)[(slice(None),) * (axis % len(shape)) + (slice(shape[axis]),)]
    if scale.ndim == 0 or scale.shape[0] == 1:
        return xp.reshape(scale, ())
    return xp.reshape(scale, tuple(-1 if i == axis % len(shape) else 1 for i in range(len(shape))))


def _steps(x: Array, scale: Array, axis: int, block_size: int) -> Array:
    xp = array_namespace(x)
    return xp.astype(x / _spread(scale, x.shape, axis, block_size), xp.float32)


def compute(x: Array, scale: Array, *, share: float, dtype: int, axis: int = 1, block_size: int = 0) -> Array:
    """The codes: of the storage type in numpy, of int8 in torch."""
    found = signs(_steps(x, scale, axis, block_size), share)
    if is_numpy_array(found):
        return found.astype(ir.DataType(dtype).numpy())
    xp = array_namespace(found)
    return xp.astype(found, xp.int8)


def _straight(x: Array, scale: Array, *, share: float, dtype: int, axis: int = 1, block_size: int = 0) -> Array:
    """Codes as floats, with the gradient of ``x / scale`` between -1 and 1 (BiBERT, arXiv:2203.06390)."""
    steps = _steps(x, scale, axis, block_size)
    held = steps.detach()
    return signs(held, share) + (steps - held) * (abs(held) < 1)


def _verify(node: ir.Node) -> None:
    expect(node, len(node.inputs) == 2 and None not in node.inputs, "takes x and scale")
    expect(node, len(node.outputs) == 1, "gives one output")
    share = edit.attribute(node, "share")
    expect(node, isinstance(share, float) and 0 <= share <= 1, "'share' is from 0 to 1")
    expect(node, edit.attribute(node, "block_size", 0) >= 0, "'block_size' is a number of elements")
    dtype = edit.attribute(node, "dtype")
    expect(node, dtype in [t.value for t in CODES], "'dtype' is int4 or int8")
    given = node.outputs[0].dtype
    expect(node, given in (None, ir.DataType(dtype)), f"gives {ir.DataType(dtype)}, not {given}")


@cache
def _body() -> Any:
    """As a protobuf; onnxscript is slow to load."""
    from onnxscript import opset21 as op
    from onnxscript import script
    from onnxscript.values import Opset

    @script(Opset(DOMAIN, VERSION), default_opset=op)
    def SignQuantize(x, scale, share: float, dtype: int, axis: int = 1, block_size: int = 0):  # type: ignore[no-untyped-def]  # noqa: N802
        """Codes of 1 everywhere, decoded, are the scale of each element."""
        ones = op.Cast(op.Expand(1.0, op.Shape(x)), to=3)
        spread = op.DequantizeLinear(ones, scale, axis=axis, block_size=block_size)
        steps = op.Cast(op.Div(x, op.CastLike(spread, x)), to=1)
        signs = op.Where(op.Less(steps, 0.0), -1.0, 1.0)
        codes = op.Where(op.Less(op.Abs(steps), op.Constant(value_float=share)), 0.0, signs)
        return op.Cast(codes, to=dtype)

    return SignQuantize.to_function_proto()


OP = Op(
    "SignQuantize", lambda: ir.serde.deserialize_function(_body()), 21, _verify,
    lambda: compute, "encode", compute, lambda: _straight,
)  # fmt: skip
