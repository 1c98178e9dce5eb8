"""Compute one node with the reference implementation of its operator in ``onnx.reference``."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray
Inputs = Sequence[Array | None]


def evaluate(node: ir.Node, inputs: Inputs, opset: int) -> list[Array]:
    """The outputs of ``node`` on arrays of any type.

    Raises:
        ValueError: The reference implementation has no result for it.
    """
    with np.errstate(all="ignore"):
        try:
            results = [_unsqueeze(node, inputs)] if node.op_type == "Unsqueeze" else _kernel(node, opset).run(*inputs)
        except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError) as e:
            raise ValueError(f"{type(e).__name__}: {e}") from e
    return [np.asarray(r) for r in results]


def _unsqueeze(node: ir.Node, inputs: Inputs) -> Array:
    """The reference counts negative axes from a rank that grows while it works."""
    assert inputs[0] is not None
    axes = inputs[1].ravel() if len(inputs) > 1 and inputs[1] is not None else node.attributes["axes"].as_ints()
    return np.expand_dims(inputs[0], tuple(int(a) for a in axes))


def _kernel(node: ir.Node, opset: int) -> Any:
    proto = ir.serde.serialize_node(node)
    settings = {"log": _silent, "verbose": 0, "new_ops": None, "opsets": {"": opset}}
    return _implementation(node.op_type, opset)(proto, settings)


@functools.cache
def _implementation(op_type: str, opset: int) -> type:
    from onnx.reference.ops import load_op  # slow to load and not always needed

    return load_op("", op_type, opset)


def _silent(*_: Any) -> None:
    """The reference's log goes nowhere."""
