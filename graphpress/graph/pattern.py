"""The n:m pattern: n of each m neighbours along the reduction axis of a weight are kept, the others are zero.

A layer that has it says so (``graphpress.sparsity``), and the verifier holds it through every later pass.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit, quantized
from graphpress.graph.grid import is_dequantize
from graphpress.keys import SPARSITY

# A tensor whose pattern was checked carries it here, so that it is read once, not after every pass.
_CHECKED = "graphpress.sparsity"


def parse(pattern: str) -> tuple[int, int]:
    """(n, m) of ``n:m``.

    Raises:
        ValueError: It is no such pattern.
    """
    n, m = (int(part) for part in pattern.split(":"))
    if not 0 < n < m:
        raise ValueError(f"{pattern!r} keeps nothing or everything")
    return n, m


def reduction_axis(node: ir.Node) -> int | None:
    """The axis of the weight along which a layer sums; None where it is no such layer."""
    if node.op_type == "Gemm":
        return 1 if edit.attribute(node, "transB", 0) else 0
    return {"MatMul": -2, "Conv": 1}.get(node.op_type)


def holds(weight: np.ndarray, axis: int, n: int, m: int, zero: np.ndarray | int = 0) -> bool:
    """Whether at most n of each m neighbours along ``axis`` differ from ``zero`` (which broadcasts)."""
    if weight.shape[axis] % m:
        return False
    nonzero = np.moveaxis(weight != zero, axis, -1)
    return bool((np.count_nonzero(nonzero.reshape(-1, m), axis=1) <= n).all())


def broken(node: ir.Node) -> str | None:
    """What is wrong with a layer that says it has a pattern; None where it has it."""
    pattern = node.metadata_props.get(SPARSITY)
    if pattern is None:
        return None
    try:
        n, m = parse(pattern)
    except ValueError:
        return f"{SPARSITY} is {pattern!r}, which is no pattern n:m"
    axis = reduction_axis(node) if not node.domain else None
    if axis is None or len(node.inputs) < 2:
        return None  # rewritten into an operator that keeps its weight elsewhere
    value, zero, scaled = _held(node.inputs[1])
    tensor = edit.constant_tensor(value)
    if tensor is None:
        return None if value is not None and _packed(value) else f"its weight is computed: {pattern} is not sure"
    axis %= len(tensor.shape)
    told = f"{pattern} along {axis}, zero {None if zero is None else zero.tolist()}"
    if tensor.meta.get(_CHECKED) == told:
        return None
    weight = tensor.numpy()
    if not holds(weight, axis, n, m, _spread(zero, scaled, weight.shape)):
        return f"its weight has no longer the pattern {pattern} along axis {axis}"
    tensor.meta[_CHECKED] = told
    return None


def _packed(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "SparseWeight" and node.domain == "graphpress"


def _held(value: ir.Value | None) -> tuple[ir.Value | None, np.ndarray | None, ir.Node | None]:
    """The constant behind Q and DQ, the zero point of its codes, and the DQ that gives them meaning."""
    if quantized.pair(value) is not None:
        return quantized.unquantized(value), None, None  # still float: any zero point gives back 0 as 0
    node = value.producer() if value is not None else None
    if not is_dequantize(node):
        return value, None, None
    zero = edit.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    return node.inputs[0], zero, node


def _spread(zero: np.ndarray | None, dq: ir.Node | None, shape: tuple[int, ...]) -> np.ndarray | int:
    if zero is None or dq is None or not zero.any():
        return 0
    if zero.size == 1:
        return zero.reshape([1] * len(shape))
    axis = int(edit.attribute(dq, "axis", 1)) % len(shape)
    block = int(edit.attribute(dq, "block_size", 0))
    if block:
        return np.repeat(zero, block, axis=axis).take(range(shape[axis]), axis)
    return zero.reshape([-1 if a == axis else 1 for a in range(len(shape))])
