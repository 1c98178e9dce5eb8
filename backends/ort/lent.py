"""Weights that a session reads where they lie in memory, in place of copies in the model's bytes.

Bytes of a model hold each weight twice, in the protobuf and in what is made of it, and ONNX Runtime copies them once
more: three times the model beside it. What is lent is mapped from the file or made by a pass, and stays as it is.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

LEAST = 1 << 14  # bytes of one weight; below that, and
WORTH = 1 << 23  # below that of all together, copies cost less than a model without them


def lend(model: ir.Model) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """The model without its large weights, and those by name; the model itself where there are none.

    Args:
        model: Not changed. Weights of bodies, those that a caller may override or that are results, and types that
            numpy has not stay in it.
    """
    large = {n: v.const_value for n, v in model.graph.initializers.items() if v.const_value and _lendable(v)}
    if sum(t.nbytes for t in large.values()) < WORTH:
        return model, {}
    lent = {n: np.ascontiguousarray(t.numpy()) for n, t in large.items()}
    bare = model.clone()
    for name, array in lent.items():
        value = bare.graph.initializers[name]
        assert value.dtype is not None
        shape = ir.Shape(array.shape)
        value.const_value = ir.ExternalTensor("lent", 0, array.nbytes, value.dtype, shape=shape, name=name)
    return bare, lent


def _lendable(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or value.is_graph_input() or value.is_graph_output() or value.dtype != tensor.dtype:
        return False
    return tensor.nbytes >= LEAST and tensor.dtype.numpy().isbuiltin == 1
