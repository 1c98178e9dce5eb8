"""What a number format is: the contract of the files in this folder, each of which holds one.

A quantizer fits parameters to a tensor, turns numbers into codes and codes into numbers, and says how that is written
into a graph and how many bits it takes. All who quantize take any of them through this contract. It is written against
the array API, so it runs on numpy without torch and, as it is, on torch tensors of any device.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeAlias

import numpy as np

from graphpress.arrays import array_namespace, device, is_numpy_array
from graphpress.errors import BadRequest, nearest
from graphpress.ops.base import Op
from graphpress.passes.quantizers.granules import arranged, granules, spread
from graphpress.types import PER_TENSOR, Kind, Scheme, Storage

Array: TypeAlias = Any  # of any library that has the array API


@dataclass(frozen=True, eq=False)
class QParams:
    """The parameters of one quantized tensor.

    Attributes:
        scale: Positive, normal; float32. One for all, or one for each channel or group, shaped as ONNX wants it:
            per_tensor: a scalar. per_channel: [channels]. per_group: the tensor's shape with its axis divided by the
            group size, rounded up.
        zero_point: Of the storage type, shaped as the scale; 0 in formats without.
        tables: What all elements share, such as a code book, by the name of the operand in the graph.
        beside: What else there is one of for each scale, such as a second one: shaped as the scale, by name likewise.
    """

    scale: Array
    zero_point: Array
    tables: Mapping[str, Array] = field(default_factory=dict)
    beside: Mapping[str, Array] = field(default_factory=dict)

    def operand(self, name: str) -> Array:
        """The array of one operand of a ``Form``."""
        return {"scale": self.scale, "zero_point": self.zero_point, **self.tables, **self.beside}[name]

    def mapped(self, change: Callable[[Array], Array]) -> QParams:
        """With ``change`` done to all that there is one of for each scale; the tables stay."""
        beside = {name: change(array) for name, array in self.beside.items()}
        return QParams(change(self.scale), change(self.zero_point), self.tables, beside)


@dataclass(frozen=True)
class Form:
    """An operator of the canonical subgraph: what it is, and the parameters that it reads behind its first input.

    The scale comes first; attributes are ``axis`` and ``block_size``, as QuantizeLinear has them. Those of the dialect
    have a scale of the rank of the tensor.
    """

    op_type: str
    operands: tuple[str, ...] = ("scale", "zero_point")
    op: Op | None = None  # of the dialect; its body goes with the model

    @property
    def domain(self) -> str:
        return "" if self.op is None else "graphpress"


@dataclass(frozen=True)
class Quantizer(ABC):
    """One number format; a frozen dataclass whose fields are its options.

    A file of this folder exposes its class as ``QUANTIZER``; schemes name it (``named.named``).

    Attributes:
        name: By which schemes know it.
        encode, decode: The canonical subgraph: numbers -> ``encode`` -> codes -> ``decode`` -> numbers.
        observers: Ways to find the range of a weight that it knows.
        beside: Names of ``QParams.beside``.
        keeps_zero: Whether 0 stays 0, as weights that were pruned need it.
        scale_dtype: The type that a file holds scales in; "": that of the weight.
    """

    name: ClassVar[str]
    encode: ClassVar[Form] = Form("QuantizeLinear")
    decode: ClassVar[Form] = Form("DequantizeLinear")
    observers: ClassVar[tuple[str, ...]] = ("minmax", "mse")
    beside: ClassVar[tuple[str, ...]] = ()
    keeps_zero: ClassVar[bool] = True
    scale_dtype: ClassVar[str] = ""

    @abstractmethod
    def fit_rows(self, rows: Array, scheme: Scheme, costs: Array | None, tables: Mapping[str, Array]) -> QParams:
        """Parameters of rows, each of which has a scale of its own.

        Args:
            rows: float32 [R, n], finite.
            scheme: Gives codes, symmetry and observer; its granularity does not matter.
            costs: What a squared error of each element costs, [R, n], or None.
            tables: To be kept, where some were fitted before; else empty.

        Returns:
            Scale and zero point [R], what stands beside them [R], and the tables.
        """

    @abstractmethod
    def codes(self, x: Array, params: QParams, scheme: Scheme) -> Array:
        """Integers, in a float type, of numbers; parameters broadcast against ``x``."""

    def whole(self, codes: Array) -> Array:
        """What ``codes`` gives in the type that ``values`` takes."""
        xp = array_namespace(codes)
        return xp.astype(codes, xp.int32)

    def nearest(self, x: Array, params: QParams, scheme: Scheme) -> Array:
        """What is left of numbers after quantization; parameters broadcast against them."""
        return self.values(self.whole(self.codes(x, params, scheme)), params, scheme)

    @classmethod
    def every_code(cls, scheme: Scheme) -> np.ndarray:
        """All codes of a scheme, ascending."""
        return np.arange(scheme.qmin, scheme.qmax + 1, dtype=np.int32)

    @abstractmethod
    def values(self, codes: Array, params: QParams, scheme: Scheme) -> Array:
        """float32 numbers of codes of an integer type; parameters broadcast against them."""

    def refusal(self, scheme: Scheme) -> str | None:
        """Why it has no such scheme; None where it has."""
        return None

    def unsuited(self, count: int, scheme: Scheme) -> str | None:
        """Why a tensor of so many elements cannot be stored so; None where it can."""
        return None

    def in_kernel(self, scheme: Scheme) -> Scheme | None:
        """How an integer kernel sees weights of a scheme: as evenly spaced codes of this one; None: only as floats."""
        return scheme

    def opset(self, scheme: Scheme) -> int:
        """The lowest default-domain opset that has the canonical subgraph of a scheme."""
        return max([scheme.opset, *(f.op.opset for f in (self.encode, self.decode) if f.op is not None)])

    def attributes(self, form: Form, scheme: Scheme) -> dict[str, Any]:
        """Attributes of an operator of the canonical subgraph besides ``axis`` and ``block_size``."""
        return {}

    def table_bits(self, scheme: Scheme) -> int:
        """Bits of the tables that a file stores for one tensor."""
        return 0

    def check(self, scheme: Scheme, where: str) -> None:
        """Refuse what the format has not.

        Raises:
            BadRequest: Names the quantizer and the reason.
        """
        if (why := self.refusal(scheme)) is not None:
            raise BadRequest(f"{self.name}: {why}", where=where)

    def fit(
        self, weight: Array, scheme: Scheme, importance: Array | None = None, tables: Mapping[str, Array] | None = None
    ) -> QParams:
        """Parameters for a constant tensor.

        Args:
            weight: Any shape and floating type.
            scheme: How it is to be stored.
            importance: What a squared error of each element costs: positive, broadcasts to ``weight``.
            tables: Code books and the like to keep; None: fit them as well.

        Raises:
            BadRequest: NaN or infinity in the weight, an observer that is not for weights, an axis the weight lacks, a
                scheme that the format has not, too few elements for it.
        """
        if scheme.observer not in self.observers:
            fix = nearest(scheme.observer, self.observers)
            raise BadRequest(f"{scheme.observer!r} is not for weights", where="observer", fix=fix)
        self.check(scheme, str(scheme))
        xp = array_namespace(weight)
        groups = granules(xp.astype(xp.asarray(weight), xp.float32), scheme)
        rows = xp.reshape(groups, (math.prod(groups.shape[:-1]), groups.shape[-1]))
        if not bool(xp.all(xp.isfinite(rows))):
            raise BadRequest("the weight holds NaN or infinity", where=str(scheme), fix="Repair the model.")
        if not tables and (why := self.unsuited(math.prod(weight.shape), scheme)) is not None:
            raise BadRequest(f"{self.name}: {why}", where=str(scheme))
        costs = None
        if importance is not None:
            each = xp.broadcast_to(xp.astype(xp.asarray(importance), xp.float32), weight.shape)
            costs = xp.reshape(granules(each, scheme), rows.shape)
        found = self.fit_rows(rows, scheme, costs, tables or {})
        return found.mapped(lambda p: arranged(p, groups.shape, scheme))

    def quantize(self, x: Array, params: QParams, scheme: Scheme) -> Array:
        """Codes of numbers, shaped as ``x``: of the storage type in numpy, of int16 or int32 elsewhere."""
        xp = array_namespace(x)
        wide = self.whole(self.codes(x, self.spread(params, x.shape, scheme), scheme))
        wide = xp.astype(wide, xp.int16) if scheme.bits <= 8 else wide  # 4-bit types take integers only
        return wide.astype(scheme.ir_dtype.numpy()) if is_numpy_array(wide) else wide

    def dequantize(self, codes: Array, params: QParams, scheme: Scheme) -> Array:
        """float32 numbers of codes, shaped as they are."""
        return self.values(codes, self.spread(params, codes.shape, scheme), scheme)

    def clipped(self, x: Array, params: QParams, scheme: Scheme) -> Array:
        """Numbers moved to the ends of the codes' range where they lie beyond them."""
        low, high = self.ends(params, x.shape, scheme)
        xp = array_namespace(x)
        return xp.minimum(xp.maximum(x, low), high)

    def ends(self, params: QParams, shape: tuple[int, ...], scheme: Scheme) -> tuple[Array, Array]:
        """The numbers of the lowest and the highest code, for each element of a tensor of a shape."""
        xp = array_namespace(params.scale)
        codes = xp.zeros(shape, dtype=xp.int32, device=device(params.scale))
        low, high = (self.dequantize(codes + end, params, scheme) for end in (scheme.qmin, scheme.qmax))
        return low, high

    def straight_through(self, x: Array, params: QParams, scheme: Scheme) -> Array:
        """What is left of torch's ``x`` after quantization, with gradients (LSQ, arXiv:1902.08153, eq. 3).

        Rounding passes gradients on to ``x`` within the range of the codes; scale and tables get theirs too, where they
        are floats that require some.
        """
        spreads = self.spread(params, x.shape, scheme)
        codes = self.codes(x.detach(), _detached(spreads), scheme).detach()
        unit = self.unit(x.detach(), spreads)
        steps = x / unit
        low, high = self.ends(_detached(params), x.shape, scheme)
        inside = (x.detach() > low) & (x.detach() < high)
        moved = unit * (steps - steps.detach())
        return self.values(self.whole(codes), spreads, scheme) + moved * inside

    def unit(self, x: Array, params: QParams) -> Array:
        """The scale that each element is measured by; parameters broadcast against ``x``."""
        return params.scale

    def following(self, params: QParams, scheme: Scheme) -> QParams:
        """The parameters with what follows from those that training has moved, such as bounds from a book."""
        return params

    def learnable(self, scheme: Scheme) -> tuple[str, ...]:
        """Parameters that training may move."""
        return ("scale",)

    def bits(self, shape: tuple[int, ...], scheme: Scheme, scale_bits: int = 32) -> int:
        """Bits that a tensor of this shape takes in a file, parameters included (quantization.md, C3)."""
        count = math.prod(parameters_shape(shape, scheme))
        held = Storage.of(scheme.dtype)
        zero = held.stored_bits if "zero_point" in self.decode.operands else 0
        stored = held.file_bits(math.prod(shape)) + _whole_bytes(count * zero)
        return stored + count * (scale_bits + self.beside_bits(scale_bits)) + self.table_bits(scheme)

    def beside_bits(self, scale_bits: int) -> int:
        """Bits that a file stores for each scale besides it and the zero point."""
        return sum(scale_bits for name in self.beside if name in self.decode.operands)

    def spread(self, params: QParams, shape: tuple[int, ...], scheme: Scheme) -> QParams:
        """The parameters in a shape that broadcasts against a tensor of a shape."""
        return params.mapped(lambda p: spread(p, shape, scheme))


def _whole_bytes(bits: int) -> int:
    return -(-bits // 8) * 8


def parameters_shape(shape: tuple[int, ...], scheme: Scheme) -> tuple[int, ...]:
    """The shape of the scale of a tensor of a shape."""
    granularity = scheme.granularity
    if granularity == PER_TENSOR or granularity.axis is None:
        return ()
    axis = granularity.axis % len(shape)
    if granularity.kind is Kind.CHANNEL:
        return (shape[axis],)
    assert granularity.group_size is not None
    return (*shape[:axis], -(-shape[axis] // granularity.group_size), *shape[axis + 1 :])


def stored(codes: Array, scheme: Scheme) -> np.ndarray:
    """Integers of numpy in the storage type."""
    found: np.ndarray = codes.astype(np.int32).astype(scheme.ir_dtype.numpy())
    return found


def _detached(params: QParams) -> QParams:
    def plain(array: Array) -> Array:
        return array.detach() if hasattr(array, "detach") else array

    found = params.mapped(plain)
    return replace(found, tables={n: plain(a) for n, a in params.tables.items()})
