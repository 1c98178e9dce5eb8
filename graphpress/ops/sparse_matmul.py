"""``graphpress::SparseMatMul(x, values, indices) -> y``: a product with an n:4 matrix that is stored small.

The weight is [K, N], pruned along K; ``shape`` is [N, K] and ``perm`` [1, 0], which Transpose takes back.
"""

# The body below is ONNX written as Python: its constants have no type that mypy knows.
# mypy: disable-error-code="arg-type, type-var"

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphpress.graph import edit
from graphpress.ops import sparse_weight
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
    def SparseMatMul(x, values, indices, n: int, shape: Sequence[int], perm: Sequence[int]):  # type: ignore[no-untyped-def]  # noqa: N802
        """The body of SparseWeight, and a MatMul with what it gives."""
        each = op.Reshape(op.Constant(value_int=n), [1])
        groups = op.Concat([-1], each, axis=0)
        bytes = op.Unsqueeze(op.Cast(indices, to=7), [1])
        pairs = op.Mod(op.Div(bytes, op.Constant(value_ints=[1, 4, 16, 64])), 4)
        places = op.Slice(op.Reshape(pairs, [-1]), [0], op.Reshape(op.Size(values), [1]))
        given = op.Reshape(values, groups)
        zeros = op.CastLike(op.Expand(0.0, op.Concat(op.Shape(given, end=1), [4], axis=0)), values)
        dense = op.ScatterElements(zeros, op.Reshape(places, groups), given, axis=1)
        weight = op.Transpose(op.Reshape(dense, op.Constant(value_ints=shape)), perm=perm)
        return op.MatMul(x, weight)

    return SparseMatMul.to_function_proto()


def _function() -> ir.Function:
    return ir.serde.deserialize_function(_body())


def _verify(node: ir.Node) -> None:
    expect(node, len(node.inputs) == 3 and len(node.outputs) == 1, "takes x, values and indices, gives the product")
    sparse_weight.check_sparse(node, *node.inputs[1:])
    shape = edit.attribute(node, "shape")
    expect(node, len(shape) == 2, "multiplies by a matrix")
    x = node.inputs[0]
    expect(node, x is not None and x.dtype != ir.DataType.INT8, "multiplies floats")


def _kernel() -> Callable[..., Any]:
    import torch

    weight = sparse_weight.OP.kernel()

    def sparse_matmul(
        x: torch.Tensor, values: torch.Tensor, indices: torch.Tensor, n: int, shape: list[int], perm: list[int]
    ) -> torch.Tensor:
        return torch.matmul(x, weight(values, indices, n, shape, perm))

    return sparse_matmul


def _macs(node: ir.Node, x: Sequence[int]) -> int:
    """Of the products that are not by zero."""
    return math.prod(x[:-1]) * math.prod(edit.attribute(node, "shape")) * int(edit.attribute(node, "n")) // 4


OP = Op("SparseMatMul", _function, 18, _verify, _kernel, macs=_macs)
