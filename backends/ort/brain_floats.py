"""bfloat16 in and out of ONNX Runtime, whose numpy interface does not know the type: as values of its own."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

TYPE = "tensor(bfloat16)"
_DTYPE = ir.DataType.BFLOAT16.numpy()


def to_ort(array: np.ndarray) -> ort.OrtValue:
    """An array, of bfloat16 (ml_dtypes) or any other type, as a value that sessions take."""
    if array.dtype != _DTYPE:
        return ort.OrtValue.ortvalue_from_numpy(array)
    bits = np.asarray(array, order="C").view(np.uint16)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, int(ir.DataType.BFLOAT16))


def from_ort(value: ort.OrtValue) -> np.ndarray:
    """A copy of what a session on the CPU gives, as an array."""
    if value.data_type() != TYPE:
        array: np.ndarray = value.numpy()
        return array
    count = math.prod(value.shape())
    if not count:
        return np.zeros(value.shape(), _DTYPE)
    bits = (ctypes.c_uint16 * count).from_address(value.data_ptr())
    return np.frombuffer(bits, np.uint16).copy().view(_DTYPE).reshape(value.shape())
