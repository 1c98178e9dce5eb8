"""``graphpress::SparseWeight(values, indices) -> weight``: an n:4 weight stored small, dense again once it is loaded.

ONNX Runtime folds the body at load, so that what reads the weight runs as if it had been stored dense.
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
from graphpress.ops.base import DOMAIN, VERSION, Op, expect
from graphpress.ops.sparse_codes import GROUP

if TYPE_CHECKING:
    from collections.abc import Callable

TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT8)


@cache
def _body() -> Any:
    """As a protobuf; onnxscript is slow to load."""
    from onnxscript import opset18 as op
    from onnxscript import script
    from onnxscript.values import Opset

    @script(Opset(DOMAIN, VERSION), default_opset=op)
    def SparseWeight(values, indices, n: int, shape: Sequence[int], perm: Sequence[int]):  # type: ignore[no-untyped-def]  # noqa: N802
        """Scatter n values into each four zeros, at the places that pairs of bits name."""
        each = op.Reshape(op.Constant(value_int=n), [1])
        groups = op.Concat([-1], each, axis=0)
        bytes = op.Unsqueeze(op.Cast(indices, to=7), [1])
        pairs = op.Mod(op.Div(bytes, op.Constant(value_ints=[1, 4, 16, 64])), 4)
        places = op.Slice(op.Reshape(pairs, [-1]), [0], op.Reshape(op.Size(values), [1]))
        given = op.Reshape(values, groups)
        zeros = op.CastLike(op.Expand(0.0, op.Concat(op.Shape(given, end=1), [4], axis=0)), values)
        dense = op.ScatterElements(zeros, op.Reshape(places, groups), given, axis=1)
        return op.Transpose(op.Reshape(dense, op.Constant(value_ints=shape)), perm=perm)

    return SparseWeight.to_function_proto()


def _function() -> ir.Function:
    return ir.serde.deserialize_function(_body())


def check_sparse(node: ir.Node, values: ir.Value | None, indices: ir.Value | None) -> None:
    """What both operators ask of their operands and attributes.

    Raises:
        VerifyError: Names the node and the rule.
    """
    n, shape = edit.attribute(node, "n"), edit.attribute(node, "shape")
    perm = edit.attribute(node, "perm")
    expect(node, isinstance(n, int) and 0 < n < GROUP, f"keeps n of each {GROUP}, 1 to {GROUP - 1}, not {n}")
    expect(node, bool(shape) and shape[-1] % GROUP == 0, f"the last size of 'shape' is no multiple of {GROUP}")
    expect(node, sorted(perm or ()) == list(range(len(shape))), "'perm' is no order of the axes of 'shape'")
    given, places = edit.constant_tensor(values), edit.constant_tensor(indices)
    expect(node, given is not None and places is not None, "values and indices are constants")
    assert given is not None and places is not None
    expect(node, given.dtype in TYPES, f"values of {given.dtype}")
    expect(node, places.dtype == ir.DataType.UINT8, f"indices of {places.dtype}, not uint8")
    kept = math.prod(shape) * n // GROUP
    expect(node, given.size == kept, f"holds {given.size} values where shape and n say {kept}")
    expect(node, places.size == -(-kept // GROUP), f"holds {places.size} bytes of places for {kept} values")


def _verify(node: ir.Node) -> None:
    expect(node, len(node.inputs) == 2 and len(node.outputs) == 1, "takes values and indices, gives the weight")
    check_sparse(node, *node.inputs)


def _kernel() -> Callable[..., Any]:
    import torch

    def sparse_weight(
        values: torch.Tensor, indices: torch.Tensor, n: int, shape: list[int], perm: list[int]
    ) -> torch.Tensor:
        pairs = indices.to(torch.int64).unsqueeze(1) // torch.tensor([1, 4, 16, 64], device=indices.device) % 4
        places = pairs.reshape(-1)[: values.numel()].reshape(-1, n)
        zeros = torch.zeros(len(places), GROUP, dtype=values.dtype, device=values.device)
        return zeros.scatter(1, places, values.reshape(-1, n)).reshape(list(shape)).permute(list(perm))

    return sparse_weight


OP = Op("SparseWeight", _function, 18, _verify, _kernel)
