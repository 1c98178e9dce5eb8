"""Constants for graphs in ONNX text, which has no way to write 4-bit or random ones."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from tests import kit


def codes(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random integers over the whole range of a storage type such as int4."""
    bits, signed = int(kind.lstrip("uint")), kind[0] == "i"
    low = -(1 << (bits - 1)) if signed else 0
    dtype = getattr(ml_dtypes, kind, None) or np.dtype(kind)
    return rng.integers(low, low + (1 << bits), shape).astype(np.int16).astype(dtype)


def parse(source: str, **arrays: np.ndarray) -> ir.Model:
    """``kit.parse``, with the named graph inputs made initializers of these values."""
    model = kit.parse(source)
    for name, array in arrays.items():
        value = next(v for v in model.graph.inputs if v.name == name)
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.type = value.const_value.shape, ir.TensorType(value.const_value.dtype)
        model.graph.register_initializer(value)
    return model
