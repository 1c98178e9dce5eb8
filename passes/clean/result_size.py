"""How large the result of a node on constant inputs would be.

Only operators are computed that are deterministic, cheap, and whose result size is known before: folding must neither
hang nor allocate what the runtime would not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

Array = np.ndarray
Inputs = Sequence[Array | None]


def _operators(names: str) -> frozenset[str]:
    return frozenset(names.split())


# The result has the broadcast shape of the inputs.
_ELEMENTWISE = _operators(
    """Abs Add And BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Clip Cos Div Equal Erf Exp
    Floor Greater GreaterOrEqual Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Min Mod Mul Neg Not Or PRelu
    Pow Reciprocal Relu Round Sigmoid Sign Sin Sqrt Sub Sum Tanh Where Xor"""
)
# The result has no more elements than the inputs together.
_SHRINKING = _operators(
    """ArgMax ArgMin Compress Concat CumSum DepthToSpace Flatten GatherElements ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Reshape ScatterElements
    ScatterND Shape Size Slice SpaceToDepth Split Squeeze Transpose Trilu Unsqueeze"""
)


def _product(values: Array | Sequence[int]) -> int:
    return math.prod(int(v) for v in np.asarray(values).ravel())


def _range(start: Array, limit: Array, delta: Array) -> int:
    return max(0, math.ceil((float(limit) - float(start)) / float(delta))) if float(delta) else 0


def _gather(data: Array, indices: Array, axis: int) -> int:
    return data.size // max(data.shape[axis], 1) * indices.size


def _matmul(a: Array, b: Array) -> int:
    return a.size * b.size // max(a.shape[-1], 1) if a.ndim else 0


def _pad(x: Array, pads: Array) -> int:
    return _product(np.asarray(x.shape) + pads.reshape(2, -1).sum(0)) if x.ndim * 2 == pads.size else -1


_GROWING: dict[str, Callable[..., int]] = {
    "ConstantOfShape": lambda node, shape: _product(shape),
    "Expand": lambda node, x, shape: _product(np.broadcast_shapes(x.shape, tuple(int(d) for d in shape))),
    "Gather": lambda node, x, i: _gather(x, i, node.attributes.get_int("axis", 0)),
    "MatMul": lambda node, a, b: _matmul(a, b),
    "OneHot": lambda node, i, depth, values: i.size * int(depth.ravel()[0]),
    "Pad": lambda node, x, pads, *_: _pad(x, pads),
    "Range": lambda node, start, limit, delta: _range(start, limit, delta),
    "Tile": lambda node, x, repeats: x.size * _product(repeats),
}


def result_size(node: ir.Node, inputs: Inputs) -> int | None:
    """Elements of the largest output, an upper bound; None where the node is not to be computed."""
    given = [x for x in inputs if x is not None]
    if node.domain != "" or any(x.dtype.kind not in "biufcV" for x in given):
        return None
    if node.op_type in _SHRINKING:
        return sum(x.size for x in given)
    try:
        if node.op_type in _ELEMENTWISE:
            return None if _divides_by_zero(node, given) else _product(np.broadcast_shapes(*(x.shape for x in given)))
        law = _GROWING.get(node.op_type)
        size = None if law is None else law(node, *inputs)
    except (ArithmeticError, IndexError, TypeError, ValueError):
        return None  # inputs that the operator does not take
    return size if size is None or size >= 0 else None


def _divides_by_zero(node: ir.Node, given: list[Array]) -> bool:
    return node.op_type in ("Div", "Mod") and given[1].dtype.kind in "iu" and not given[1].all()
