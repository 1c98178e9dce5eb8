"""``graphpress::DualTurn(x, first, order, second) -> y``: two block rotations of the last axis, and the channels in
another order between them, at run time.

``first`` and ``second`` [k, b, b] hold an orthogonal matrix for each of the k blocks of b channels: a block, as a row,
becomes ``block M``. ``order`` [k b], int64, says which channel comes to each place in between. An element costs 2 b
operations (DuQuant, arXiv:2406.01721, section 3.2).
"""

# mypy: disable-error-code="arg-type, type-var"

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.ops.base import DOMAIN, VERSION, Op, expect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

_FLOATS = (None, ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@cache
def _body() -> Any:
    """As a protobuf; onnxscript is slow to load."""
    from onnxscript import opset18 as op
    from onnxscript import script
    from onnxscript.values import Opset

    @script(Opset(DOMAIN, VERSION), default_opset=op)
    def DualTurn(x, first, order, second):  # type: ignore[no-untyped-def]  # noqa: N802
        """The body, which any runtime can execute."""
        blocks = op.Concat([-1], op.Shape(first, end=2), axis=0)
        rows = op.Concat([-1], op.Shape(order), axis=0)
        apart = op.Transpose(op.Reshape(x, blocks, allowzero=1), perm=[1, 0, 2])
        turned = op.Reshape(op.Transpose(op.MatMul(apart, first), perm=[1, 0, 2]), rows, allowzero=1)
        moved = op.Transpose(op.Reshape(op.Gather(turned, order, axis=1), blocks, allowzero=1), perm=[1, 0, 2])
        return op.Reshape(op.Transpose(op.MatMul(moved, second), perm=[1, 0, 2]), op.Shape(x), allowzero=1)

    return DualTurn.to_function_proto()


def _function() -> ir.Function:
    return ir.serde.deserialize_function(_body())


def _verify(node: ir.Node) -> None:
    held = len(node.inputs) == 4 and all(v is not None for v in node.inputs)
    expect(node, held, "takes x, first, order and second")
    expect(node, len(node.outputs) == 1, "gives one output")
    x, first, order, second = node.inputs
    assert x is not None
    expect(node, x.dtype in _FLOATS, f"turns floats, not {x.dtype}")
    shape = _blocks(node, "first", first, x)
    expect(node, _blocks(node, "second", second, x) == shape, "first and second have one shape")
    places = edit.constant(order)
    width = math.prod(shape[:2])
    sorts = places is not None and places.dtype == np.int64 and np.array_equal(np.sort(places), np.arange(width))
    expect(node, sorts, f"order is a constant, int64, and holds each of {width} channels once")
    last = x.shape[-1] if x.shape is not None and len(x.shape) else None
    expect(node, not isinstance(last, int) or last == width, f"the last axis ({last}) has {width} channels")


def _blocks(node: ir.Node, name: str, value: ir.Value | None, x: ir.Value) -> tuple[int, ...]:
    tensor = edit.constant_tensor(value)
    expect(node, tensor is not None, f"{name} is a constant")
    assert tensor is not None
    shape = tuple(tensor.shape.numpy())
    expect(node, len(shape) == 3 and shape[1] == shape[2] and 0 not in shape, f"{name} holds square matrices")
    expect(node, x.dtype in (None, tensor.dtype), f"{name} has the type of x")
    return shape


def _kernel() -> Callable[..., Any]:
    import torch

    def dual_turn(x: torch.Tensor, first: torch.Tensor, order: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        blocks = x.reshape(-1, *first.shape[:2])
        moved = torch.einsum("tkb,kbc->tkc", blocks, first).flatten(1)[:, order]
        return torch.einsum("tkb,kbc->tkc", moved.reshape(blocks.shape), second).reshape(x.shape)

    dual_turn.__annotations__ |= dict.fromkeys(("x", "first", "order", "second"), "Tensor")
    return dual_turn


def _macs(node: ir.Node, x: Sequence[int]) -> int:
    tensor = edit.constant_tensor(node.inputs[1])
    return 0 if tensor is None else 2 * math.prod(x) * int(tensor.shape.numpy()[-1])


OP = Op("DualTurn", _function, 18, _verify, _kernel, macs=_macs)
