"""Half precision: what a model holds in float16 or bfloat16, and arrays in and out of these types."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import ml_dtypes
import numpy as np
import onnx_ir as ir

from graphpress.graph import edit

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
TYPE_NAMES = ("to", "dtype", "output_dtype", "precision", "softmax_precision", "stash_type")  # attributes of operators


def found(model: ir.Model) -> set[ir.DataType]:
    """The half types that a model holds, in weights, values or attributes."""
    return {t for t in _types(model) if t in HALVES}


def _types(model: ir.Model) -> Iterator[ir.DataType | None]:
    for scope in edit.graphs(model):
        held = scope.initializers.values() if isinstance(scope, ir.Graph) else ()
        yield from (element_type(v.type) for v in (*scope.inputs, *scope.outputs))
        yield from (v.dtype if v.const_value is None else v.const_value.dtype for v in held)
        for node in scope:
            yield from (element_type(v.type) for v in node.outputs)
            yield from (attribute_type(a) for a in node.attributes.values())


def attribute_type(attr: ir.Attr, names: Collection[str] = TYPE_NAMES) -> ir.DataType | None:
    """The half type that an attribute is of, or names."""
    if attr.is_ref():
        return None
    if attr.type == ir.AttributeType.TENSOR:
        return attr.as_tensor().dtype
    if attr.type == ir.AttributeType.INT and attr.name in names:
        return next((t for t in HALVES if t == attr.as_int()), None)
    return None


def element_type(kind: ir.TypeProtocol | None) -> ir.DataType | None:
    """The element type, of a tensor or of what a sequence or an optional value holds."""
    while isinstance(kind, ir.SequenceType | ir.OptionalType):
        kind = kind.elem_type
    return kind.dtype if isinstance(kind, ir.TensorType | ir.SparseTensorType) else None


def found_constants(model: ir.Model) -> set[ir.DataType]:
    """The half types of its weights: what a pass writes there is rounded to them."""
    scopes = (s for s in edit.graphs(model) if isinstance(s, ir.Graph))
    return {v.dtype for s in scopes for v in s.initializers.values() if v.dtype in HALVES}


def unit(kind: ir.DataType | None) -> float:
    """One unit in the last place of 1.0: 2^-10 in float16, 2^-7 in bfloat16; 0 where rounding is none to speak of."""
    return float(ml_dtypes.finfo(kind.numpy()).eps) if kind in HALVES else 0.0


def readable(array: np.ndarray) -> np.ndarray:
    """bfloat16 as float32, which torch takes from numpy; any other array itself."""
    return array.astype(np.float32) if array.dtype == ir.DataType.BFLOAT16.numpy() else array


def narrow(array: np.ndarray, kind: ir.DataType) -> np.ndarray | None:
    """A float32 array in a half type, where no number overflows, and few are worse than rounded.

    Returns:
        The array, or None where half precision is no home for it.
    """
    limits = ml_dtypes.finfo(kind.numpy())
    with np.errstate(over="ignore"):
        half = array.astype(kind.numpy())
    finite = np.isfinite(array)
    exact, rounded = array[finite].astype(np.float64), half[finite].astype(np.float64)
    if not np.isfinite(rounded).all():
        return None
    return half if np.linalg.norm(rounded - exact) <= float(limits.eps) * np.linalg.norm(exact) else None
