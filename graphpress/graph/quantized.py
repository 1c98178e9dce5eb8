"""The one reader of quantized values in a graph: constants behind Q -> DQ or as codes, activations, what decodes codes.

*Encoding* makes codes of numbers (QuantizeLinear), *decoding* numbers of codes (DequantizeLinear). Operators of the
dialect do so too, for formats that ONNX lacks; which ones, they say themselves (``ops.base.Op.role``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeGuard

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.graph.grid import grid_of, is_dequantize, is_quantize
from graphpress.graph.movement import rearranges
from graphpress.keys import QUANTIZER
from graphpress.types import AFFINE, PER_TENSOR, Granularity, Storage, per_channel, per_group

SCALE = 1  # the input of what encodes and decodes that holds the scale
_TOKEN = "DynamicQuantizeToken"


def encodes(node: ir.Node | None) -> TypeGuard[ir.Node]:
    """Whether the node makes codes of numbers by parameters that it is given."""
    return is_quantize(node) or _has_role(node, "encode")


def decodes(node: ir.Node | None) -> TypeGuard[ir.Node]:
    """Whether the node makes numbers of codes."""
    return is_dequantize(node) or _has_role(node, "decode")


def dialect(node: ir.Node) -> Any:
    """The operator of the dialect that a node is (``ops.base.Op``), or None."""
    return _dialect().get(node.op_type) if node.domain == "graphpress" else None


def unquantized(value: ir.Value | None) -> ir.Value | None:
    """What went into the pair of encoding and decoding that gives ``value``, or the codes; else ``value`` itself."""
    for kind in (decodes, encodes):
        node = value.producer() if value is not None else None
        if not kind(node):
            return value
        value = node.inputs[0]
    return value


def readers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """(node, slot) of who reads a constant in the end: behind encoding and decoding, transposition, reshaping."""
    pending = [value]
    while pending:
        for node, slot in pending.pop().uses():
            if encodes(node) or decodes(node) or rearranges(node) or (node.op_type == "Cast" and not node.domain):
                pending += node.outputs if slot == 0 else []
            else:
                yield node, slot


def holds_scale(value: ir.Value) -> bool:
    """Whether a value is the scale of what encodes or decodes."""
    return any(u.idx == SCALE and (encodes(u.node) or decodes(u.node)) for u in value.uses())


def floats(value: ir.Value | None) -> np.ndarray | None:
    """A constant as float32, also where it stands as codes of at most 32 bits behind decoding."""
    direct = edit.constant(value)
    if direct is not None:
        return direct.astype(np.float32)
    node = value.producer() if value is not None else None
    return decoded(node) if decodes(node) else None


def encoder(node: ir.Node) -> Callable[[np.ndarray], np.ndarray]:
    """What an encoding node with constant parameters does to an array; it holds on to these, not to the node."""
    if is_quantize(node):
        grid = grid_of(node)
        assert grid is not None
        return grid.quantize
    return _computer(node)


def storage(node: ir.Node) -> Storage | None:
    """The type of the codes that an encoding node makes."""
    if is_quantize(node):
        return None if (grid := grid_of(node)) is None else Storage.of_codes(grid.dtype)
    held = int(edit.attribute(node, "stored", 0))  # narrower than what the node gives
    return Storage.of_codes(ir.DataType(held) if held else node.outputs[0].dtype)


def decoded(node: ir.Node) -> np.ndarray | None:
    """float32 numbers of a decoding node of constants, or None."""
    codes = edit.constant(node.inputs[0])
    if codes is None or not is_dequantize(node):
        return None if codes is None or not _fixed(node) else _computer(node)(codes)
    given = [edit.constant(v) for v in node.inputs[1:]]
    if any(p is None for p in given) or edit.attribute(node, "block_size", 0):
        grid = grid_of(node)
        return None if grid is None else grid.dequantize(codes)
    scale, *zero = (np.asarray(p, np.float64) for p in given)
    shape = [-1 if i == edit.attribute(node, "axis", 1) % codes.ndim else 1 for i in range(codes.ndim)]
    scale, *zero = (p.reshape(shape) if p.size > 1 else p.reshape(()) for p in (scale, *zero))
    return np.asarray((codes.astype(np.float64) - (zero[0] if zero else 0)) * scale, np.float32)


def signature(node: ir.Node) -> tuple[object, ...] | None:
    """What two encoding (or decoding) nodes must share to do the same; None where parameters are no constants."""
    if is_quantize(node) or is_dequantize(node):
        grid = grid_of(node)
        return None if grid is None else (node.op_type, grid)
    given = [edit.constant(v) for v in node.inputs[1:]]
    if any(p is None for p in given):
        return None
    attributes = tuple(sorted((n, str(a.value)) for n, a in node.attributes.items()))
    return node.op_type, attributes, *((p.dtype.str, p.shape, p.tobytes()) for p in given if p is not None)


@dataclass(frozen=True)
class Steps:
    """What evenly spaced numbers, on which all that a decoding node gives lies, are multiples of.

    Attributes:
        scale: As DequantizeLinear has it.
        axis, block: How it lies along the tensor; None and 0 for one scale.
    """

    scale: np.ndarray
    axis: int | None
    block: int


def steps(node: ir.Node) -> Steps | None:
    """The steps of a decoding node whose codes stand for integers; None where it has none, or they are no constants."""
    if is_dequantize(node):
        grid = grid_of(node)
        return None if grid is None or grid.floating else Steps(grid.scale, grid.axis, grid.block)
    found = dialect(node)
    if found is None or found.levels is None or found.levels(node) is None:
        return None
    block, scale = int(edit.attribute(node, "block_size", 0)), _array(node.inputs[SCALE])
    if scale.size == 1 and not block:
        return Steps(scale.reshape(()), None, 0)
    return Steps(scale if block else scale.reshape(-1), int(edit.attribute(node, "axis", 0)), block)


@dataclass(frozen=True)
class Pair:
    """A float constant that is encoded and decoded: a weight that can still be rounded and trained.

    Attributes:
        encode, decode: The nodes.
    """

    encode: ir.Node
    decode: ir.Node

    @property
    def source(self) -> ir.Value:
        """The constant."""
        value = self.encode.inputs[0]
        assert value is not None
        return value

    @property
    def quantizer(self) -> str:
        """The number format: the text that schemes know it by."""
        return self.encode.metadata_props.get(QUANTIZER, AFFINE)

    @property
    def granularity(self) -> Granularity:
        """As the parameters lie along the constant."""
        tensor, scale = (edit.constant_tensor(v) for v in (self.source, self.encode.inputs[SCALE]))
        assert tensor is not None and scale is not None
        block = int(edit.attribute(self.encode, "block_size", 0))
        if scale.size == 1 and not block:
            return PER_TENSOR
        axis = int(edit.attribute(self.encode, "axis", 1)) % len(tensor.shape)
        return per_group(axis, block) if block else per_channel(axis)

    @property
    def same(self) -> bool:
        """Whether both nodes have the same scale, and zero point where the format has one."""
        count = 3 if is_quantize(self.encode) else 2
        return tuple(self.encode.inputs[1:count]) == tuple(self.decode.inputs[1:count])


def pair(value: ir.Value | None) -> Pair | None:
    """The pair that gives ``value`` of a float constant, or None."""
    decode = value.producer() if value is not None else None
    if not decodes(decode):
        return None
    encode = decode.inputs[0].producer() if decode.inputs[0] is not None else None
    return Pair(encode, decode) if encodes(encode) and edit.is_constant(encode.inputs[0]) else None


@dataclass(frozen=True)
class Weight:
    """Evenly spaced codes of a constant, and the node that gives them meaning: (codes - zero) * scale."""

    node: ir.Node

    @property
    def value(self) -> ir.Value:
        """The initializer that holds the codes."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def dtype(self) -> ir.DataType:
        assert self.value.dtype is not None
        return self.value.dtype

    @property
    def bits(self) -> int:
        return int(self.dtype.bitwidth)

    @property
    def codes(self) -> np.ndarray:
        """In the storage type: an ml_dtypes array below 8 bits."""
        return _array(self.value)

    @property
    def scale(self) -> np.ndarray:
        """Float32: a scalar, [channels], or the shape of the codes with one axis cut into groups."""
        return _array(self.node.inputs[SCALE])

    @property
    def zero(self) -> np.ndarray:
        """Integers in the shape of the scale."""
        given = self.node.inputs[2] if len(self.node.inputs) > 2 else None
        return np.zeros(self.scale.shape, np.int16) if given is None else _array(given).astype(np.int16)

    @property
    def block(self) -> int:
        """Elements in a group; 0 where scales are per tensor or per channel."""
        return int(edit.attribute(self.node, "block_size", 0))

    @property
    def axis(self) -> int | None:
        """The axis with several scales, counted from the front; None for per tensor."""
        if self.scale.size == 1 and not self.block:
            return None
        tensor = edit.constant_tensor(self.value)
        assert tensor is not None
        return int(edit.attribute(self.node, "axis", 1)) % len(tensor.shape)

    @property
    def symmetric(self) -> bool:
        return not self.zero.any()


@dataclass(frozen=True)
class Expanded(Weight):
    """A weight of another format whose codes stand for integers of 8 bits: evenly spaced once they are looked up."""

    levels: np.ndarray  # int8, from the lowest code on

    @property
    def dtype(self) -> ir.DataType:
        return ir.DataType.INT8

    @cached_property
    def codes(self) -> np.ndarray:
        low = Storage.of(self.value.dtype.name.lower()).low if self.value.dtype is not None else 0
        found: np.ndarray = self.levels[_array(self.value).astype(np.int16) - low]
        return found

    @property
    def scale(self) -> np.ndarray:
        """As DequantizeLinear would have it, not with the rank of the codes."""
        found = steps(self.node)
        assert found is not None
        return found.scale

    @property
    def zero(self) -> np.ndarray:
        return np.zeros(self.scale.shape, np.int16)


@dataclass(frozen=True)
class Activation:
    """A quantized activation. ``codes * scale`` after subtracting ``zero``; ``zero`` is None for symmetric codes.

    ``kind`` is static (constant scale), dynamic (DynamicQuantizeLinear), token (one scale a row).
    """

    kind: str
    source: ir.Value
    codes: ir.Value
    scale: ir.Value
    zero: ir.Value | None

    @property
    def bits(self) -> int:
        """Of codes made at run time: 8, or fewer by token."""
        maker = self.scale.producer()
        return int(edit.attribute(maker, "bits", 8)) if self.kind == "token" and maker is not None else 8


def weight(value: ir.Value | None) -> Weight | None:
    """The weight that ``value`` is, if it is decoded from constant, evenly spaced codes of at most 8 bits."""
    found = stored(value)
    return found if found is not None and is_dequantize(found.node) and not found.dtype.is_floating_point() else None


def small_floats(value: ir.Value | None) -> Weight | None:
    """The weight that ``value`` is, if it is decoded from constant floats of 8 bits."""
    found = stored(value)
    return found if found is not None and is_dequantize(found.node) and found.dtype.is_floating_point() else None


def stored(value: ir.Value | None) -> Weight | None:
    """Likewise in any format: its scale and codes can be read, but what they stand for only by ``floats``."""
    node = value.producer() if value is not None else None
    return Weight(node) if decodes(node) and _stored(node) else None


def expanded(value: ir.Value | None) -> Expanded | None:
    """The weight that ``value`` is, if its codes stand for integers of 8 bits without being these."""
    node = value.producer() if value is not None else None
    if not _has_role(node, "decode") or not _stored(node) or (levels := dialect(node).levels) is None:
        return None
    found = levels(node)
    return None if found is None else Expanded(node, found)


def _stored(node: ir.Node) -> bool:
    codes = node.inputs[0]
    kind = Storage.of_codes(codes.dtype) if codes is not None else None
    return kind is not None and kind.bits <= 8 and all(v is None or edit.is_constant(v) for v in node.inputs)


def activation(value: ir.Value | None) -> Activation | None:
    """The quantized activation that ``value`` is, or None for a float one or a constant."""
    node = value.producer() if value is not None else None
    if node is None:
        return None
    if node.op_type == "Mul" and node.domain == "":
        return _token(node)
    codes = node.inputs[0] if is_dequantize(node) else None
    if codes is None or edit.is_constant(codes):
        return None
    maker, scale = codes.producer(), node.inputs[SCALE]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    assert scale is not None
    if maker is not None and maker.op_type == "DynamicQuantizeLinear":
        assert maker.inputs[0] is not None
        return Activation("dynamic", maker.inputs[0], codes, scale, zero)
    return Activation("static", codes, codes, scale, zero) if edit.is_constant(scale) else None


def _token(mul: ir.Node) -> Activation | None:
    cast, scale = (mul.inputs[0], mul.inputs[1]) if mul.inputs[0] is not None else (None, None)
    caster = cast.producer() if cast is not None else None
    maker = scale.producer() if scale is not None else None
    if caster is None or maker is None or caster.op_type != "Cast":
        return None
    if (maker.domain, maker.op_type) != ("graphpress", _TOKEN):
        return None
    codes, source = caster.inputs[0], maker.inputs[0]
    if codes is not maker.outputs[0] or scale is not maker.outputs[1] or source is None:
        return None
    assert scale is not None
    return Activation("token", source, codes, scale, None)


def _has_role(node: ir.Node | None, role: str) -> TypeGuard[ir.Node]:
    op = dialect(node) if node is not None else None
    return op is not None and op.role == role


def _fixed(node: ir.Node) -> bool:
    return all(v is None or edit.is_constant(v) for v in node.inputs[1:])


def _computer(node: ir.Node) -> Callable[[np.ndarray], np.ndarray]:
    """What an operator of the dialect does to an array, its other inputs being constants."""
    op, given = dialect(node), [_array(v) for v in node.inputs[1:]]
    assert op is not None and op.compute is not None
    attributes = {n: edit.attribute(node, n) for n in node.attributes}
    compute: Callable[..., np.ndarray] = op.compute
    return lambda array: compute(array, *given, **attributes)


def _array(value: ir.Value | None) -> np.ndarray:
    array = edit.constant(value)
    assert array is not None
    return array


@functools.cache
def _dialect() -> dict[str, Any]:
    from graphpress import catalog

    return catalog.ops()
