"""What is known of a vector of sizes: the values that a Shape node gives where a dimension is static.

``Shape(x)`` of ``x [batch, 3, 32, 32]`` is ``("batch", 3, 32, 32)``; Gather, Slice, Concat and the like carry this on,
so that a size picked out of a dynamic shape folds although the shape itself does not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit

Dims = np.ndarray  # of objects: int, name of a dimension, or None for anything; rank 0 or 1
_DEPTH = 16  # longer chains of shape arithmetic than this are not followed


def known_dims(value: ir.Value | None, depth: int = _DEPTH) -> Dims | None:
    """The elements of an int64 scalar or vector, a name or None where they depend on the input; None if it is none."""
    if value is None or depth == 0:
        return None
    tensor = edit.constant_tensor(value)
    if tensor is not None:
        small = tensor.dtype == ir.DataType.INT64 and len(tensor.shape) < 2 and tensor.size <= 64
        return tensor.numpy().astype(object) if small else None
    node = value.producer()
    if node is None or node.domain != "" or (rule := _RULES.get(node.op_type)) is None:
        return None
    if any(a.is_ref() for a in node.attributes.values()):
        return None
    return rule(node, depth - 1)


def _shape(node: ir.Node, depth: int) -> Dims | None:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None:
        return None
    dims = [d if isinstance(d, int) else d.value for d in shape]
    end = node.attributes.get_int("end", len(dims))
    return np.array([*dims[node.attributes.get_int("start", 0) : end]], dtype=object)


def _same(node: ir.Node, depth: int) -> Dims | None:
    return known_dims(node.inputs[0], depth)


def _cast(node: ir.Node, depth: int) -> Dims | None:
    return _same(node, depth) if node.attributes.get_int("to", 0) == ir.DataType.INT64 else None


def _constants(node: ir.Node, names: tuple[str, ...]) -> list[list[int] | None] | None:
    """The named operands, inputs from slot 1 on or attributes of older opsets; None if one is not constant."""
    result: list[list[int] | None] = []
    for slot, name in enumerate(names, 1):
        value = node.inputs[slot] if slot < len(node.inputs) else None
        if value is None:
            given = node.attributes.get(name)
            result.append(None if given is None else list(given.as_ints()))
            continue
        array = edit.constant(value)
        if array is None:
            return None
        result.append(array.ravel().tolist())
    return result


def _gather(node: ir.Node, depth: int) -> Dims | None:
    dims, indices = known_dims(node.inputs[0], depth), edit.constant(node.inputs[1])
    if dims is None or dims.ndim != 1 or indices is None or indices.ndim > 1:
        return None
    picked = dims.take(indices, mode="raise") if (abs(indices) <= len(dims)).all() else None
    return None if picked is None else np.asarray(picked, dtype=object)


def _slice(node: ir.Node, depth: int) -> Dims | None:
    dims, operands = known_dims(node.inputs[0], depth), _constants(node, ("starts", "ends", "axes", "steps"))
    if dims is None or dims.ndim != 1 or operands is None or operands[0] is None or operands[1] is None:
        return None
    step = operands[3][0] if operands[3] else 1
    return dims[operands[0][0] : operands[1][0] : step] if step > 0 else None


def _concat(node: ir.Node, depth: int) -> Dims | None:
    parts = [known_dims(v, depth) for v in node.inputs]
    known = [p for p in parts if p is not None and p.ndim == 1]
    return np.concatenate(known) if known and len(known) == len(parts) else None


def _unsqueeze(node: ir.Node, depth: int) -> Dims | None:
    dims = known_dims(node.inputs[0], depth)
    operands = _constants(node, ("axes",))
    return dims.reshape(1) if dims is not None and dims.ndim == 0 and operands in ([[0]], [[-1]]) else None


def _squeeze(node: ir.Node, depth: int) -> Dims | None:
    dims = known_dims(node.inputs[0], depth)
    single = dims is not None and dims.shape == (1,) and _constants(node, ("axes",)) is not None
    return dims.reshape(()) if dims is not None and single else None


def _reshape(node: ir.Node, depth: int) -> Dims | None:
    dims, target = known_dims(node.inputs[0], depth), _constants(node, ("shape",))
    flat = target == [[-1]] or (target == [[1]] and dims is not None and dims.size == 1)
    return dims.reshape(-1) if dims is not None and flat else None


_RULES: dict[str, Callable[[ir.Node, int], Dims | None]] = {
    "Shape": _shape,
    "Identity": _same,
    "Cast": _cast,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
}
