"""``graphpress::LookupDequantize(codes, scale, book) -> x``: each code stands for a number of a book, times its scale.

For levels of any spacing: ``x = book[code - lowest] * scale``. The scale has the rank of the codes and broadcasts;
along ``axis`` it may have one element for each ``block_size`` of theirs. ONNX Runtime folds the body at load where the
codes are constant.
"""

# The body below is ONNX written as Python: its constants have no type that mypy knows.
# mypy: disable-error-code="arg-type, type-var"

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir

from graphpress.arrays import array_namespace, is_numpy_array
from graphpress.graph import edit
from graphpress.ops.base import DOMAIN, VERSION, Op, expect

if TYPE_CHECKING:
    from collections.abc import Callable

Array: TypeAlias = Any
CODES = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4)
BOOK = 2  # the input that holds the book


def repeated_scale(scale: Array, shape: tuple[int, ...], axis: int = 0, block_size: int = 0) -> Array:
    """The scale in a form that broadcasts against codes of a shape."""
    if block_size:
        xp = array_namespace(scale)
        return xp.repeat(scale, block_size, axis=axis)[(slice(None),) * axis + (slice(shape[axis]),)]
    return scale


def compute(codes: Array, scale: Array, book: Array, *, lowest: int, axis: int = 0, block_size: int = 0) -> Array:
    """The numbers, of the scale's type."""
    xp = array_namespace(scale)
    index = (codes.astype(np.int64) if is_numpy_array(codes) else codes.long()) - lowest
    return xp.astype(book[index], scale.dtype) * repeated_scale(scale, codes.shape, axis, block_size)


def check_lookup(node: ir.Node, operands: tuple[str, ...]) -> None:
    """What both operators ask of their inputs and attributes.

    Raises:
        VerifyError: Names the node and the rule.
    """
    expect(node, len(node.inputs) == 3 and None not in node.inputs, f"takes {', '.join(operands)}")
    expect(node, len(node.outputs) == 1, "gives one output")
    expect(node, isinstance(edit.attribute(node, "lowest"), int), "'lowest' is the lowest code")
    expect(node, edit.attribute(node, "axis", 0) >= 0, "'axis' is counted from the front")
    expect(node, edit.attribute(node, "block_size", 0) >= 0, "'block_size' is a number of elements")


def _verify(node: ir.Node) -> None:
    check_lookup(node, ("codes", "scale", "book"))
    codes, _, book = node.inputs
    assert codes is not None
    expect(node, codes.dtype in (None, *CODES), f"takes codes of 4 or 8 bits, not {codes.dtype}")
    rank, scale = len(codes.shape or ()), edit.constant_tensor(node.inputs[1])
    expect(node, scale is None or not rank or len(scale.shape) == rank, "the scale has the rank of the codes")
    tensor = edit.constant_tensor(book)
    expect(node, tensor is not None, "the book is constant")
    assert tensor is not None
    expect(node, codes.dtype is None or tensor.size == 1 << codes.dtype.bitwidth, "the book has a number for each code")


def levels(node: ir.Node) -> np.ndarray | None:
    """The book as int8, where all of it is such integers."""
    book = edit.constant(node.inputs[BOOK])
    if book is None:
        return None
    whole = np.rint(np.asarray(book, np.float64))
    fits = bool((whole == book).all()) and whole.min() >= -128 and whole.max() <= 127
    return whole.astype(np.int8) if fits else None


def _straight() -> Callable[..., Any]:
    def straight(codes: Array, scale: Array, book: Array, *, lowest: int, axis: int = 0, block_size: int = 0) -> Array:
        found = book[codes.detach().round().long() - lowest] + (codes - codes.detach())
        return found * repeated_scale(scale, codes.shape, axis, block_size)

    return straight


@cache
def _body() -> Any:
    """As a protobuf; onnxscript is slow to load."""
    from onnxscript import opset21 as op
    from onnxscript import script
    from onnxscript.values import Opset

    @script(Opset(DOMAIN, VERSION), default_opset=op)
    def LookupDequantize(codes, scale, book, lowest: int, axis: int = 0, block_size: int = 0):  # type: ignore[no-untyped-def]  # noqa: N802
        """Gather the book; repeat the scale along its axis."""
        index = op.Sub(op.Cast(op.Cast(codes, to=1), to=7), op.Cast(lowest, to=7))
        levels = op.CastLike(op.Gather(book, index), scale)
        along = op.Cast(axis, to=7)
        count = op.Gather(op.Shape(index), along)
        last = op.Sub(op.Gather(op.Shape(scale), along), 1)
        group = op.Min(op.Div(op.Range(0, count, 1), op.Max(op.Cast(block_size, to=7), 1)), last)
        return op.Mul(levels, op.Gather(scale, group, axis=axis))

    return LookupDequantize.to_function_proto()


OP = Op(
    "LookupDequantize", lambda: ir.serde.deserialize_function(_body()), 21, _verify,
    lambda: compute, "decode", compute, _straight, levels,
)  # fmt: skip
