"""``graphpress::TwinLookupDequantize(codes, scale, negative, row, negative_row, book) -> x``: a book for each sign.

Codes below 0 stand for numbers of row ``negative_row`` of the book times ``negative``, the others for numbers of row
``row`` times ``scale``. These four have the rank of the codes and broadcast as the scale of ``LookupDequantize`` does.
ONNX Runtime folds the body at load where the codes are constant.
"""

# mypy: disable-error-code="arg-type, type-var"

from __future__ import annotations

from functools import cache
from typing import Any

import onnx_ir as ir

from graphpress.arrays import array_namespace
from graphpress.graph import edit
from graphpress.ops.base import DOMAIN, VERSION, Op, expect
from graphpress.ops.lookup_dequantize import Array, repeated_scale

CODES = (ir.DataType.INT8, ir.DataType.INT4)
OPERANDS = ("scale", "negative", "row", "negative_row")


def of_sign(below: Array, positive: Array, negative: Array, axis: int, block_size: int) -> Array:
    """Of each element the parameter of its sign."""
    shape = below.shape
    parts = (repeated_scale(p, shape, axis, block_size) for p in (negative, positive))
    return array_namespace(below).where(below, *parts)


def compute(
    codes: Array, scale: Array, negative: Array, row: Array, negative_row: Array, book: Array,
    *, lowest: int, axis: int = 0, block_size: int = 0,
) -> Array:  # fmt: skip
    """The numbers, of the scale's type."""
    xp = array_namespace(scale)
    code = xp.astype(codes, xp.int64)
    factor = of_sign(code < 0, scale, negative, axis, block_size)
    line = xp.astype(of_sign(code < 0, row, negative_row, axis, block_size), xp.int64)
    return xp.astype(at(book, line, code - lowest), scale.dtype) * factor


def at(table: Array, row: Array, column: Array) -> Array:
    """Elements of a matrix."""
    return array_namespace(table).reshape(table, (-1,))[row * table.shape[1] + column]


def check_twin(node: ir.Node, table: str) -> None:
    """What both operators ask of their inputs and attributes.

    Raises:
        VerifyError: Names the node and the rule.
    """
    names = ", ".join((*OPERANDS, table))
    expect(node, len(node.inputs) == 6 and None not in node.inputs, f"takes an input and {names}")
    expect(node, len(node.outputs) == 1, "gives one output")
    expect(node, isinstance(edit.attribute(node, "lowest"), int), "'lowest' is the lowest code")
    expect(node, edit.attribute(node, "axis", 0) >= 0, "'axis' is counted from the front")
    expect(node, edit.attribute(node, "block_size", 0) >= 0, "'block_size' is a number of elements")
    tensors = [edit.constant_tensor(v) for v in node.inputs[1:5]]
    shapes = {tuple(t.shape) for t in tensors if t is not None}
    expect(node, len(shapes) <= 1, f"{', '.join(OPERANDS)} have one shape")
    found = edit.constant_tensor(node.inputs[5])
    expect(node, found is not None and len(found.shape) == 2, f"the {table} is a constant matrix")


def _verify(node: ir.Node) -> None:
    check_twin(node, "book")
    codes, book = node.inputs[0], edit.constant_tensor(node.inputs[5])
    assert codes is not None and book is not None
    expect(node, codes.dtype in (None, *CODES), f"takes signed codes of 4 or 8 bits, not {codes.dtype}")
    fits = codes.dtype is None or book.shape[1] == 1 << codes.dtype.bitwidth
    expect(node, fits, "each row of the book has a number for each code")


@cache
def _body() -> Any:
    """As a protobuf; onnxscript is slow to load."""
    from onnxscript import opset21 as op
    from onnxscript import script
    from onnxscript.values import Opset

    @script(Opset(DOMAIN, VERSION), default_opset=op)
    def TwinLookupDequantize(  # type: ignore[no-untyped-def]  # noqa: N802
        codes, scale, negative, row, negative_row, book, lowest: int, axis: int = 0, block_size: int = 0
    ):
        """Repeat scale and row along their axis, those of the sign; gather the book."""
        first = op.Cast(lowest, to=7)
        code = op.Cast(op.Cast(codes, to=1), to=7)
        along = op.Cast(axis, to=7)
        count = op.Gather(op.Shape(code), along)
        last = op.Sub(op.Gather(op.Shape(scale), along), 1)
        group = op.Min(op.Div(op.Range(0, count, 1), op.Max(op.Cast(block_size, to=7), 1)), last)
        below = op.Less(code, 0)
        upper = op.Gather(op.Cast(row, to=7), group, axis=axis)
        line = op.Where(below, op.Gather(op.Cast(negative_row, to=7), group, axis=axis), upper)
        place = op.Add(op.Mul(line, op.Gather(op.Shape(book), 1)), op.Sub(code, first))
        number = op.CastLike(op.Gather(op.Reshape(book, op.Constant(value_ints=[-1])), place), scale)
        factor = op.Where(below, op.Gather(negative, group, axis=axis), op.Gather(scale, group, axis=axis))
        return op.Mul(number, factor)

    return TwinLookupDequantize.to_function_proto()


OP = Op(
    "TwinLookupDequantize", lambda: ir.serde.deserialize_function(_body()), 21,
    _verify, lambda: compute, "decode", compute, lambda: _straight,
)  # fmt: skip


def _straight(
    codes: Array, scale: Array, negative: Array, row: Array, negative_row: Array, book: Array,
    *, lowest: int, axis: int = 0, block_size: int = 0,
) -> Array:  # fmt: skip
    """Of codes that are floats, with their gradients."""
    code = codes.detach().round().long()
    line = of_sign(code < 0, row, negative_row, axis, block_size).long()
    number = at(book, line, code - lowest) + (codes - codes.detach())
    return number * of_sign(code < 0, scale, negative, axis, block_size)
