"""ONNX element types in torch, and what carries those that torch cannot compute with."""

from __future__ import annotations

import warnings

import numpy as np
import onnx_ir as ir
import torch

from graphpress.errors import Unsupported

_NATIVE = {
    "FLOAT": torch.float32, "DOUBLE": torch.float64, "FLOAT16": torch.float16, "BFLOAT16": torch.bfloat16,
    "INT8": torch.int8, "INT16": torch.int16, "INT32": torch.int32, "INT64": torch.int64,
    "UINT8": torch.uint8, "BOOL": torch.bool, "COMPLEX64": torch.complex64, "COMPLEX128": torch.complex128,
    "FLOAT8E4M3FN": torch.float8_e4m3fn, "FLOAT8E4M3FNUZ": torch.float8_e4m3fnuz,
    "FLOAT8E5M2": torch.float8_e5m2, "FLOAT8E5M2FNUZ": torch.float8_e5m2fnuz, "FLOAT8E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
# torch stores these at most; a wider type holds their values while computing.
_CARRIED = {
    "UINT16": torch.int32, "UINT32": torch.int64, "UINT64": torch.int64,
    "INT4": torch.int8, "UINT4": torch.uint8, "INT2": torch.int8, "UINT2": torch.uint8, "FLOAT4E2M1": torch.float32,
}  # fmt: skip
_BITS_ONLY = {  # numpy has them by ml_dtypes, torch by the same bits
    "BFLOAT16": np.int16, "FLOAT8E4M3FN": np.uint8, "FLOAT8E4M3FNUZ": np.uint8, "FLOAT8E5M2": np.uint8,
    "FLOAT8E5M2FNUZ": np.uint8, "FLOAT8E8M0": np.uint8,
}  # fmt: skip


def torch_dtype(name: str) -> torch.dtype:
    """The torch type that holds values of an ONNX type, called by its name in ``ir.DataType``.

    Raises:
        Unsupported: torch has nothing for it (strings).
    """
    found = _NATIVE.get(name) or _CARRIED.get(name)
    if found is None:
        raise Unsupported(f"torch has no tensors of {name}", where="type")
    return found


def carried(name: str) -> bool:
    """Whether torch holds the type in a wider one."""
    return name in _CARRIED


def carrier(name: str) -> torch.dtype | None:
    """What holds a type that torch does not compute with; None for one that it does."""
    return _CARRIED.get(name)


_RANGES = {
    **{f"INT{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (2, 4, 8, 16, 32, 64)},
    **{f"UINT{bits}": (0, 2**bits - 1) for bits in (2, 4, 8, 16, 32, 64)},
}


def integer_range(name: str) -> tuple[int, int]:
    """Lowest and highest value of an integer type."""
    return _RANGES[name]


def from_numpy(array: np.ndarray, name: str) -> torch.Tensor:
    """A tensor of an ONNX type; it shares the array's memory where torch has the type."""
    if array.flags.writeable:
        return _shared(array, name)
    with warnings.catch_warnings():  # torch warns of it; whoever writes must make it its own first (weights.py)
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return _shared(array, name)


def _shared(array: np.ndarray, name: str) -> torch.Tensor:
    if name in _BITS_ONLY:
        return torch.from_numpy(array.view(_BITS_ONLY[name])).view(_NATIVE[name])
    if name == "FLOAT4E2M1":
        return torch.from_numpy(array.astype(np.float32))
    if name == "UINT64":
        return torch.from_numpy(array.view(np.int64))
    if name in _CARRIED:
        narrow = {torch.int8: np.int8, torch.uint8: np.uint8, torch.int32: np.int32, torch.int64: np.int64}
        return torch.from_numpy(array.astype(narrow[_CARRIED[name]]))
    if name not in _NATIVE:
        raise Unsupported(f"torch has no tensors of {name}", where="type")
    return torch.from_numpy(array)


def to_numpy(tensor: torch.Tensor, name: str | None) -> np.ndarray:
    """The array of an ONNX type (None: of the tensor's own type) that a tensor holds."""
    tensor = tensor.detach().cpu()
    if name is None:
        own = {dtype: n for n, dtype in _NATIVE.items()}
        name = own.get(tensor.dtype, "FLOAT")
    wanted = ir.DataType[name].numpy()
    if name in _BITS_ONLY:
        if tensor.dtype != _NATIVE[name]:
            tensor = tensor.to(_NATIVE[name])
        return tensor.contiguous().view(torch.int16 if name == "BFLOAT16" else torch.uint8).numpy().view(wanted)
    array = tensor.numpy()
    if name == "UINT64":
        return array.view(np.uint64)
    return array if array.dtype == wanted else array.astype(wanted)
