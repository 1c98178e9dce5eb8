"""``graphpress::Hadamard(x, left, right) -> y``: an orthogonal change of basis of the last axis, at run time.

``left`` [a, a] and ``right`` [b, b] are the Kronecker factors of the matrix. Each run of a b elements of the last
axis is one [a, b] matrix Y and becomes ``left Y right^T``; where a b divides the axis, runs are turned apart (blocks).
An element costs 2 (a + b) operations instead of 2 a b (QuaRot, arXiv:2404.00456, section 4).
"""

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
    def Hadamard(x, left, right, fast_left: int, fast_right: int):  # type: ignore[no-untyped-def]  # noqa: N802
        """``fast_left`` and ``fast_right`` say that a factor is a Sylvester matrix: nothing here, a transform in torch."""  # noqa: E501
        sizes = op.Concat([-1], op.Shape(left, end=1), op.Shape(right, end=1), axis=0)  # type: ignore[type-var]
        runs = op.Reshape(x, sizes, allowzero=1)  # type: ignore[arg-type]  # the list becomes a Constant
        turned = op.MatMul(left, op.MatMul(runs, op.Transpose(right, perm=[1, 0])))
        return op.Reshape(turned, op.Shape(x), allowzero=1)

    return Hadamard.to_function_proto()


def _function() -> ir.Function:
    return ir.serde.deserialize_function(_body())


def sylvester(order: int) -> np.ndarray:
    """The symmetric +-1 matrix whose entry is the parity of ``i & j``, [order, order]; order a power of two."""
    matrix = np.ones((1, 1))
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def is_sylvester(factor: np.ndarray) -> bool:
    """Whether a factor [n, n] is a positive multiple of the Sylvester matrix of its order."""
    n, scale = len(factor), factor.max()
    power = n & (n - 1) == 0 and factor.shape == (n, n) and scale > 0
    return bool(power and np.array_equal(factor, scale * sylvester(n).astype(factor.dtype)))


def _verify(node: ir.Node) -> None:
    expect(node, len(node.inputs) == 3 and all(v is not None for v in node.inputs), "takes x, left and right")
    expect(node, len(node.outputs) == 1, "gives one output")
    x, left, right = node.inputs
    assert x is not None
    expect(node, x.dtype in _FLOATS, f"turns floats, not {x.dtype}")
    sizes = []
    for name, factor in (("left", left), ("right", right)):
        tensor = edit.constant_tensor(factor)
        expect(node, tensor is not None, f"{name} is a constant")
        assert tensor is not None
        shape = tuple(tensor.shape.numpy())
        expect(node, len(shape) == 2 and shape[0] == shape[1] and shape[0] > 0, f"{name} is a square matrix")
        expect(node, x.dtype in (None, tensor.dtype), f"{name} has the type of x")
        fast = edit.attribute(node, f"fast_{name}", 0)
        expect(node, not fast or is_sylvester(tensor.numpy()), f"fast_{name}: {name} is no Sylvester matrix")
        sizes.append(shape[0])
    last = x.shape[-1] if x.shape is not None and len(x.shape) else None
    if isinstance(last, int):
        expect(node, last % math.prod(sizes) == 0, f"{math.prod(sizes)} divides the last axis ({last})")


def _kernel() -> Callable[..., Any]:
    def hadamard(
        x: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, fast_left: int = 0, fast_right: int = 0
    ) -> torch.Tensor:
        runs = x.reshape(-1, left.shape[0], right.shape[0])
        runs = _transform(runs, 2) * right[0, 0] if fast_right else runs @ right.T
        runs = _transform(runs, 1) * left[0, 0] if fast_left else left @ runs
        return runs.reshape(x.shape)

    hadamard.__annotations__ |= {"x": "Tensor", "left": "Tensor", "right": "Tensor"}
    return hadamard


def _transform(x: torch.Tensor, axis: int) -> torch.Tensor:
    """The fast Walsh-Hadamard transform of one axis, not scaled: log2(n) rounds of sums and differences."""
    import torch

    n, step = x.shape[axis], 1
    while step < n:
        pairs = x.unflatten(axis, (n // (2 * step), 2, step))
        a, b = pairs.unbind(axis + 1)
        x = torch.stack((a + b, a - b), axis + 1).flatten(axis, axis + 2)
        step *= 2
    return x


def _macs(node: ir.Node, x: Sequence[int]) -> int:
    tensors = edit.constant_tensor(node.inputs[1]), edit.constant_tensor(node.inputs[2])
    return math.prod(x) * sum(t.shape.numpy()[0] for t in tensors if t is not None)


OP = Op("Hadamard", _function, 18, _verify, _kernel, macs=_macs)
