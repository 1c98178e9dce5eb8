"""``graphpress::SumLookupDequantize(codes, scale, second, book, second_book) -> x``: the sum of two numbers of books.

``x = book[code - lowest] * scale + second_book[code - lowest] * second``: points with an offset (a second book of
ones), or two binary numbers with a scale each (books of 0 and 1). Both scales have the rank of the codes and broadcast
as the scale of ``LookupDequantize`` does. ONNX Runtime folds the body at load where the codes are constant.
"""

# mypy: disable-error-code="arg-type, type-var"

from __future__ import annotations

from functools import cache
from typing import Any

import onnx_ir as ir

from graphpress.arrays import array_namespace
from graphpress.graph import edit
from graphpress.ops.base import DOMAIN, VERSION, Op, expect
from graphpress.ops.lookup_dequantize import CODES as WIDE_CODES
from graphpress.ops.lookup_dequantize import Array, repeated_scale

CODES = (*WIDE_CODES, ir.DataType.INT2, ir.DataType.UINT2)


def compute(
    codes: Array, scale: Array, second: Array, book: Array, second_book: Array,
    *, lowest: int, axis: int = 0, block_size: int = 0,
) -> Array:  # fmt: skip
    """The numbers, of the scale's type."""
    xp = array_namespace(scale)
    index = xp.astype(codes, xp.int64) - lowest
    pairs = ((book, scale), (second_book, second))
    first, other = (
        xp.astype(t[index], scale.dtype) * repeated_scale(s, codes.shape, axis, block_size) for t, s in pairs
    )
    return first + other


def check_terms(node: ir.Node, tables: tuple[str, str]) -> None:
    """What both operators ask of their inputs and attributes.

    Raises:
        VerifyError: Names the node and the rule.
    """
    names = ", ".join(("scale", "second", *tables))
    expect(node, len(node.inputs) == 5 and None not in node.inputs, f"takes an input and {names}")
    expect(node, len(node.outputs) == 1, "gives one output")
    expect(node, isinstance(edit.attribute(node, "lowest"), int), "'lowest' is the lowest code")
    expect(node, edit.attribute(node, "axis", 0) >= 0, "'axis' is counted from the front")
    expect(node, edit.attribute(node, "block_size", 0) >= 0, "'block_size' is a number of elements")
    scales = [t for t in map(edit.constant_tensor, node.inputs[1:3]) if t is not None]
    expect(node, len({tuple(t.shape) for t in scales}) <= 1, "both scales have one shape")
    books = [edit.constant_tensor(v) for v in node.inputs[3:]]
    expect(node, all(t is not None and len(t.shape) == 1 for t in books), f"{tables[0]} and {tables[1]} are constant")


def _verify(node: ir.Node) -> None:
    check_terms(node, ("book", "second_book"))
    codes, book = node.inputs[0], edit.constant_tensor(node.inputs[3])
    assert codes is not None and book is not None
    expect(node, codes.dtype in (None, *CODES), f"takes codes of 2, 4 or 8 bits, not {codes.dtype}")
    fits = codes.dtype is None or book.size in (4, 1 << codes.dtype.bitwidth)
    expect(node, fits, "the books have a number for each code, or for each of 2 bits")


def _straight(
    codes: Array, scale: Array, second: Array, book: Array, second_book: Array,
    *, lowest: int, axis: int = 0, block_size: int = 0,
) -> Array:  # fmt: skip
    """Of codes that are floats, with their gradients."""
    index, shape = codes.detach().round().long() - lowest, codes.shape
    first = (book[index] + (codes - codes.detach())) * repeated_scale(scale, shape, axis, block_size)
    return first + second_book[index] * repeated_scale(second, shape, axis, block_size)


@cache
def _body() -> Any:
    """As a protobuf; onnxscript is slow to load."""
    from onnxscript import opset21 as op
    from onnxscript import script
    from onnxscript.values import Opset

    @script(Opset(DOMAIN, VERSION), default_opset=op)
    def SumLookupDequantize(  # type: ignore[no-untyped-def]  # noqa: N802
        codes, scale, second, book, second_book, lowest: int, axis: int = 0, block_size: int = 0
    ):
        """Gather both books; repeat both scales along their axis."""
        index = op.Sub(op.Cast(op.Cast(codes, to=1), to=7), op.Cast(lowest, to=7))
        along = op.Cast(axis, to=7)
        count = op.Gather(op.Shape(index), along)
        last = op.Sub(op.Gather(op.Shape(scale), along), 1)
        group = op.Min(op.Div(op.Range(0, count, 1), op.Max(op.Cast(block_size, to=7), 1)), last)
        first = op.Mul(op.CastLike(op.Gather(book, index), scale), op.Gather(scale, group, axis=axis))
        other = op.Mul(op.CastLike(op.Gather(second_book, index), scale), op.Gather(second, group, axis=axis))
        return op.Add(first, other)

    return SumLookupDequantize.to_function_proto()


OP = Op(
    "SumLookupDequantize", lambda: ir.serde.deserialize_function(_body()), 21, _verify,
    lambda: compute, "decode", compute, lambda: _straight,
)  # fmt: skip
