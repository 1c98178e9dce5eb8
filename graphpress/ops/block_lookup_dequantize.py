"""``graphpress::BlockLookupDequantize(codes, scale, outer, book) -> x``: numbers of a book in scales of two levels.

``x = book[code - lowest] * (scale * outer)``: the scale of each block is a float of 8 bits, ``outer`` one float32 of
the tensor. Otherwise as ``LookupDequantize``. ONNX Runtime folds the body at load where the codes are constant.
"""

# mypy: disable-error-code="arg-type, type-var"

from __future__ import annotations

from functools import cache
from typing import Any

import onnx_ir as ir

from graphpress.arrays import array_namespace
from graphpress.graph import edit
from graphpress.ops.base import DOMAIN, VERSION, Op, expect
from graphpress.ops.lookup_dequantize import CODES, Array, repeated_scale

SCALES = (ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2)


def whole_scale(scale: Array, outer: Array, shape: tuple[int, ...], axis: int, block_size: int) -> Array:
    """The product of both scales, broadcasting against a tensor of a shape."""
    xp = array_namespace(outer)
    return repeated_scale(xp.astype(scale, xp.float32) * outer, shape, axis, block_size)


def compute(
    codes: Array, scale: Array, outer: Array, book: Array, *, lowest: int, axis: int = 0, block_size: int = 0
) -> Array:
    """The numbers, float32."""
    xp = array_namespace(book)
    index = xp.astype(codes, xp.int64) - lowest
    return book[index] * whole_scale(scale, outer, codes.shape, axis, block_size)


def check_blocks(node: ir.Node, table: str) -> None:
    """What both operators ask of their inputs and attributes.

    Raises:
        VerifyError: Names the node and the rule.
    """
    expect(node, len(node.inputs) == 4 and None not in node.inputs, f"takes an input, scale, outer and {table}")
    expect(node, len(node.outputs) == 1, "gives one output")
    expect(node, isinstance(edit.attribute(node, "lowest"), int), "'lowest' is the lowest code")
    expect(node, edit.attribute(node, "axis", 0) >= 0, "'axis' is counted from the front")
    expect(node, edit.attribute(node, "block_size", 0) >= 0, "'block_size' is a number of elements")
    scale, outer, last = node.inputs[1:]
    assert scale is not None
    expect(node, scale.dtype in (None, *SCALES), f"the scale is a float of 8 bits, not {scale.dtype}")
    tensors = edit.constant_tensor(outer), edit.constant_tensor(last)
    expect(node, all(t is not None for t in tensors), f"outer and {table} are constant")


def _verify(node: ir.Node) -> None:
    check_blocks(node, "book")
    codes, book = node.inputs[0], edit.constant_tensor(node.inputs[3])
    assert codes is not None and book is not None
    expect(node, codes.dtype in (None, *CODES), f"takes codes of 4 or 8 bits, not {codes.dtype}")
    expect(node, codes.dtype is None or book.size == 1 << codes.dtype.bitwidth, "the book has a number for each code")


def _straight(
    codes: Array, scale: Array, outer: Array, book: Array, *, lowest: int, axis: int = 0, block_size: int = 0
) -> Array:
    """Of codes that are floats, with their gradients."""
    found = book[codes.detach().round().long() - lowest] + (codes - codes.detach())
    return found * whole_scale(scale, outer, codes.shape, axis, block_size)


@cache
def _body() -> Any:
    """As a protobuf; onnxscript is slow to load."""
    from onnxscript import opset21 as op
    from onnxscript import script
    from onnxscript.values import Opset

    @script(Opset(DOMAIN, VERSION), default_opset=op)
    def BlockLookupDequantize(codes, scale, outer, book, lowest: int, axis: int = 0, block_size: int = 0):  # type: ignore[no-untyped-def]  # noqa: N802
        """Gather the book; multiply both scales, and repeat them along their axis."""
        index = op.Sub(op.Cast(op.Cast(codes, to=1), to=7), op.Cast(lowest, to=7))
        along = op.Cast(axis, to=7)
        count = op.Gather(op.Shape(index), along)
        last = op.Sub(op.Gather(op.Shape(scale), along), 1)
        group = op.Min(op.Div(op.Range(0, count, 1), op.Max(op.Cast(block_size, to=7), 1)), last)
        both = op.Mul(op.Cast(scale, to=1), outer)
        return op.Mul(op.Gather(book, index), op.Gather(both, group, axis=axis))

    return BlockLookupDequantize.to_function_proto()


OP = Op(
    "BlockLookupDequantize", lambda: ir.serde.deserialize_function(_body()), 21,
    _verify, lambda: compute, "decode", compute, lambda: _straight,
)  # fmt: skip
