"""The grid of a Q or DQ node: which real number each stored integer stands for."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeGuard

import ml_dtypes
import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.types import Storage

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class Grid:
    """``real = (integer - zero) * scale``. Equal grids map every integer to the same real number, bit for bit.

    Attributes:
        key: What equality and hashing look at: storage type, axis, block size, elements of scale and zero.
        dtype: Storage type.
        scale: float32, float16 or bfloat16; a scalar, [channels], or blocked.
        zero: Zero point in the storage type, shaped like ``scale``.
        axis: The axis of the scales; None for a per-tensor grid.
        block: Elements that share a scale along ``axis``; 0 where the axis is not cut.
        values: Scale and zero point as they stand in the graph; the zero point may be absent.
    """

    key: tuple[object, ...]
    dtype: ir.DataType = field(compare=False)
    scale: np.ndarray = field(compare=False)
    zero: np.ndarray = field(compare=False)
    axis: int | None = field(compare=False)
    block: int = field(compare=False)
    values: tuple[ir.Value | None, ir.Value | None] = field(compare=False)

    @cached_property
    def exact(self) -> bool:
        """Whether Q(DQ(q)) == q for every integer q.

        In float32 the two roundings of ``(n * s) / s`` move n by at most 2**-22 * |n|, under 1/2 for 16 bits, as long
        as no product is infinite or subnormal.
        """
        sane = np.all((self.scale >= np.finfo(np.float32).tiny) & (self.scale < 2.0**100))
        return self.scale.dtype == np.float32 and bool(sane)

    @cached_property
    def movable(self) -> bool:
        """Whether the grid can be written at other places: exact, per tensor, with an explicit zero point, even."""
        whole = not self.floating and self.dtype.bitwidth in (8, 16)
        return self.axis is None and self.exact and self.values[1] is not None and whole

    @property
    def floating(self) -> bool:
        """Whether what is stored are small floats, not integers."""
        return self.dtype.is_floating_point()

    def __str__(self) -> str:
        dtype = self.dtype.name.lower()
        if self.axis is not None:
            return f"{dtype} with {self.scale.size} scales"
        return f"{dtype} over [{self.span[0]:.4g}, {self.span[1]:.4g}]"

    @cached_property
    def limits(self) -> tuple[int, int]:
        """The smallest and largest integer (or float) of the storage type."""
        info = (ml_dtypes.finfo if self.floating else ml_dtypes.iinfo)(self.dtype.numpy())
        return int(info.min), int(info.max)

    @cached_property
    def span(self) -> tuple[float, float]:
        """The smallest and largest real number on a per-tensor grid, as DequantizeLinear computes them."""
        low, high = (np.float32(q - int(self.zero.item())) * self.scale.reshape(()) for q in self.limits)
        return float(low), float(high)

    def quantize(self, x: np.ndarray | float) -> np.ndarray:
        """QuantizeLinear as ONNX Runtime computes it: divide in the scale's type, round half to even, saturate."""
        x = np.asarray(x, dtype=self.scale.dtype)
        blocks = self._blocks(x.shape)
        scale, zero = (self._along(blocks, p) for p in (self.scale, self.zero.astype(np.float32)))
        low, high = self.limits
        steps = np.asarray(x.reshape(blocks) / scale, dtype=np.float32)
        if not self.floating:
            np.rint(steps, out=steps)
        if zero.any():
            steps += zero
        np.clip(steps, low, high, out=steps)
        return steps.reshape(x.shape).astype(self.dtype.numpy())

    def dequantize(self, codes: np.ndarray) -> np.ndarray:
        """DequantizeLinear: (codes - zero) * scale, in float32."""
        blocks = self._blocks(codes.shape)
        scale, zero = (self._along(blocks, p.astype(np.float32)) for p in (self.scale, self.zero))
        values: np.ndarray = (codes.astype(np.float32).reshape(blocks) - zero) * scale
        return values.reshape(codes.shape)

    def holds(self, x: float) -> bool:
        """Whether the real number ``x`` lies on a per-tensor grid."""
        steps = np.float32(int(self.quantize(x)) - int(self.zero.item()))
        return bool(steps * self.scale.reshape(()) == np.float32(x))

    def _blocks(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape with the blocked axis cut in two, where the blocks come out even."""
        if self.axis is None or not self.block or shape[self.axis] % self.block:
            return shape
        axis = self.axis % len(shape)
        return (*shape[:axis], shape[axis] // self.block, self.block, *shape[axis + 1 :])

    def _along(self, shape: tuple[int, ...], parameter: np.ndarray) -> np.ndarray:
        """The parameter in a form that broadcasts against ``shape``, as ``_blocks`` gave it."""
        if self.axis is None:
            return parameter.reshape(())
        rank = len(shape) - (parameter.ndim < len(shape) and self.block > 0)
        axis = self.axis % rank
        if not self.block:
            return parameter.reshape([-1 if i == axis else 1 for i in range(rank)])
        if parameter.ndim < len(shape):
            return np.expand_dims(parameter, axis + 1)
        return np.repeat(parameter, self.block, axis=axis)[tuple(slice(n) for n in shape)]


def is_quantize(node: ir.Node | None) -> TypeGuard[ir.Node]:
    """Whether the node is a QuantizeLinear of the standard."""
    return node is not None and node.op_type == QUANTIZE and node.domain == ""


def is_dequantize(node: ir.Node | None) -> TypeGuard[ir.Node]:
    """Whether the node is a DequantizeLinear of the standard."""
    return node is not None and node.op_type == DEQUANTIZE and node.domain == ""


def grid_of(node: ir.Node) -> Grid | None:
    """The grid of a Q or DQ node; None where it is computed at run time, unknown, or of wider codes than 16 bits."""
    slots = [*node.inputs, None]
    scale_value, zero_value = slots[1], slots[2]
    scale = edit.constant(scale_value)
    dtype = _dtype(node, zero_value)
    if scale is None or Storage.of_codes(dtype) is None or dtype is None or edit.attribute(node, "precision", 0):
        return None
    zero = np.zeros(scale.shape, dtype.numpy()) if zero_value is None else edit.constant(zero_value)
    if zero is None:
        return None
    block = edit.attribute(node, "block_size", 0)
    axis = None if scale.size == 1 and not block else edit.attribute(node, "axis", 1)
    shape = () if axis is None else scale.shape
    key = (dtype, scale.dtype, axis, block, shape, scale.tobytes(), zero.astype(np.int32).tobytes())
    return Grid(key, dtype, scale, zero, axis, block, (scale_value, zero_value))


def _dtype(node: ir.Node, zero: ir.Value | None) -> ir.DataType | None:
    if zero is not None:
        return zero.dtype
    if is_dequantize(node):
        return node.inputs[0].dtype if node.inputs[0] is not None else None
    return ir.DataType(edit.attribute(node, "output_dtype", 0) or ir.DataType.UINT8)
