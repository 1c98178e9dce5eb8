"""Layers whose weights stand behind a pair that quantizes them: rows of weights, and parameters that can change."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from graphpress import keys
from graphpress.contracts import PassReport
from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.graph.grid import is_quantize
from graphpress.graph.quantized import SCALE, Pair, decodes, pair, storage
from graphpress.keys import SPARSITY
from graphpress.passes.quantizers.named import named
from graphpress.passes.quantizers.quantizer import QParams, Quantizer, parameters_shape
from graphpress.passes.structure.layers.linear import Linear, linear
from graphpress.scale import middle
from graphpress.types import Kind, Role, Scheme, Site, Storage


@dataclass(frozen=True, eq=False)
class QuantizedLayer:
    """A layer whose weight is quantized but still float. Rows are [out, K], K = in / groups * prod(kernel).

    Attributes:
        layer: The layer; its weight is the float one before the pair.
        pair: What quantizes it.
        scheme: Of the weight; axes are of the stored tensor.
    """

    layer: Linear
    pair: Pair
    scheme: Scheme

    @cached_property
    def quantizer(self) -> Quantizer:
        """The number format."""
        return named(self.pair.quantizer)

    @property
    def name(self) -> str:
        return self.layer.node.name or ""

    @property
    def group(self) -> int:
        """Columns of a row that share a scale and lie side by side; 0 where none do, or all."""
        granularity = self.scheme.granularity
        if granularity.kind is not Kind.GROUP or math.prod(self.layer.shape[2:]) != 1:
            return 0
        along = 0 if self.layer.transposed else 1
        return granularity.group_size or 0 if granularity.axis == along else 0

    @property
    def own_rows(self) -> bool:
        """Whether no two rows share a scale."""
        granularity, out = self.scheme.granularity, 1 if self.layer.transposed else 0
        return (granularity.axis == out) if granularity.kind is Kind.CHANNEL else granularity.axis not in (None, out)

    @property
    def pruned(self) -> bool:
        """Whether zeros of the weight have to stay."""
        return SPARSITY in self.layer.node.metadata_props

    def weight(self) -> np.ndarray:
        """float32 [out, K]."""
        return self.rows(self._stored())

    def params(self) -> QParams:
        """As the graph has them, the scale in float32."""
        known = {name: edit.constant(value) for name, value in self._operands()}
        given = known.pop("scale")
        assert given is not None
        scale = given.reshape(parameters_shape(self._shape, self.scheme))
        zero = known.pop("zero_point", None)
        zero = np.zeros(scale.shape, self.scheme.ir_dtype.numpy()) if zero is None else zero
        tables = {n: a for n, a in known.items() if a is not None}
        beside = {n: tables.pop(n).reshape(scale.shape) for n in self.quantizer.beside}
        return QParams(scale.astype(np.float32), zero, tables, beside)

    def _operands(self) -> Iterator[tuple[str, ir.Value]]:
        """The parameters by name."""
        forms = (self.quantizer.encode, self.pair.encode), (self.quantizer.decode, self.pair.decode)
        for form, node in forms:
            for name, value in zip(form.operands, node.inputs[1:], strict=False):
                assert value is not None
                yield name, value

    def rounded(self, params: QParams) -> np.ndarray:
        """[out, K]: what the pair makes of the weight."""
        codes = self.quantizer.quantize(self._stored(), params, self.scheme)
        return self.rows(self.quantizer.dequantize(codes, params, self.scheme))

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """(lowest, highest) number of each element of the stored weight."""
        return self.quantizer.ends(self.params(), self._shape, self.scheme)

    def spread(self, params: QParams) -> QParams:
        """Those of each element, [out, K]: floats in float32, zero points in int32."""

        def each(array: np.ndarray) -> np.ndarray:
            wide = self.rows(np.broadcast_to(array, self._shape))
            return wide.astype(np.float32 if np.issubdtype(wide.dtype, np.floating) else np.int32)

        return self.quantizer.spread(params, self._shape, self.scheme).mapped(each)

    def gathered(self, each: QParams) -> QParams:
        """The inverse of ``spread``."""
        params, axis = self.params(), self.scheme.granularity.axis
        picks: list[slice | int] = [slice(None)] * len(self._shape)
        if axis is None:
            picks = [0] * len(picks)
        elif self.scheme.granularity.kind is Kind.CHANNEL:
            picks = [slice(None) if i == axis else 0 for i in range(len(picks))]
        else:
            picks[axis] = slice(None, None, self.scheme.granularity.group_size)
        shape = params.scale.shape
        found = each.mapped(lambda a: np.ascontiguousarray(self.stored(a)[tuple(picks)]).reshape(shape))
        beside = {n: a.astype(params.beside[n].dtype) for n, a in found.beside.items()}
        return replace(found, zero_point=found.zero_point.astype(params.zero_point.dtype), beside=beside)

    def cast(self, params: QParams) -> QParams:
        """With the scale rounded to the type that the graph holds it in."""
        scale = self.pair.encode.inputs[SCALE]
        assert scale is not None and scale.dtype is not None
        wanted = scale.dtype.numpy()
        smallest = np.finfo(np.float32).tiny if wanted == np.float32 else np.float32(2.0**-24)
        scale = np.maximum(params.scale.astype(wanted).astype(np.float32), smallest)
        floats = {n: a for n, a in params.beside.items() if np.issubdtype(a.dtype, np.floating)}
        beside = {n: a.astype(wanted).astype(np.float32) for n, a in floats.items()}
        return replace(params, scale=scale, beside={**params.beside, **beside})

    def rows(self, stored: np.ndarray) -> np.ndarray:
        """[out, K] of an array of the stored weight's shape."""
        view = stored.T if self.layer.transposed else stored
        return np.ascontiguousarray(view).reshape(view.shape[0], -1)

    def stored(self, rows: np.ndarray) -> np.ndarray:
        """The inverse of ``rows``."""
        view = rows.reshape(self.layer.shape)
        return view.T if self.layer.transposed else view

    def write(self, rows: np.ndarray, params: QParams) -> None:
        """Put the weight [out, K] and the grid into the graph."""
        self.layer.set_weight(rows.reshape(self.layer.shape))
        for name, value in dict(self._operands()).items():
            assert value.dtype is not None and isinstance(self.pair.encode.graph, ir.Graph)
            stored = np.ascontiguousarray(params.operand(name)).astype(value.dtype.numpy())
            stored = stored.reshape(_shape(value))
            mine = [(u.node, u.idx) for u in value.uses() if u.node in (self.pair.encode, self.pair.decode)]
            if len(mine) == len(value.uses()):
                edit.overwrite(value, stored)
                continue
            new = edit.add_const(self.pair.encode.graph, stored, value.name or "scale")
            for node, slot in mine:
                edit.set_input(node, slot, new)

    @property
    def _shape(self) -> tuple[int, ...]:
        shape = self.layer.shape
        return shape[::-1] if self.layer.transposed else shape

    def _stored(self) -> np.ndarray:
        array = edit.constant(self.layer.weight_value)
        assert array is not None
        return array.astype(np.float32)


def _shape(value: ir.Value) -> tuple[int, ...]:
    tensor = edit.constant_tensor(value)
    assert tensor is not None
    return tuple(tensor.shape.numpy())


def quantized_layers(model: ir.Model, report: PassReport) -> list[QuantizedLayer]:
    """Layers with a quantized weight, those of bodies too, in order; a Skip for each weight that is none of theirs."""
    found = []
    for node in edit.nodes(model):
        if not decodes(node):
            continue
        for use in node.outputs[0].uses():
            seen = _site(model, node, use.node, use.idx)
            if isinstance(seen, QuantizedLayer):
                found.append(seen)
            elif seen:
                report.skip(use.node, seen)
    return found


def _site(model: ir.Model, decode: ir.Node, reader: ir.Node, slot: int) -> QuantizedLayer | str:
    """The layer that reads a weight; why it is none; '' where that is no weight."""
    if edit.is_constant(decode.inputs[0]) and slot == 1:
        return "its weight is made of integers already; put gptq before the passes that fold"
    found = pair(decode.outputs[0])
    if found is None:
        return ""
    layer = linear(reader) if slot == 1 else f"input {slot} of {reader.op_type} is no weight of a linear layer"
    if isinstance(layer, str):
        return layer
    if any(reader in function for function in model.functions.values()):
        return "it is in a function, which may be called at many places"
    shared = max(len(v.uses()) for v in (decode.outputs[0], found.encode.outputs[0]))
    if shared > 1:
        return f"its weight is shared by {shared} readers"
    return _layer(layer, found)


def _layer(layer: Linear, found: Pair) -> QuantizedLayer | str:
    kind = storage(found.encode)
    bare = is_quantize(found.encode) and len(found.encode.inputs) < 3
    if kind is None or bare or not all(map(edit.is_constant, found.encode.inputs[1:])):
        return "its scale or zero point is not constant, or its type is no integer"
    if not found.same:
        return "Q and DQ have different scales"
    return QuantizedLayer(layer, found, _scheme(layer, found, kind))


def _scheme(layer: Linear, found: Pair, kind: Storage) -> Scheme:
    """As noted by the pass that wrote the pair, or else read off it."""
    granularity = found.granularity
    try:
        noted = keys.schemes(layer.node).get(Site(layer.node.name or "", 1, Role.WEIGHT))
    except BadRequest:
        noted = None
    if noted is not None and noted.storage == kind.name:
        return replace(noted, granularity=granularity, dynamic=False, quantizer=found.quantizer)
    read = Scheme(kind.name, granularity, quantizer=found.quantizer)
    zero = edit.constant(found.encode.inputs[2]) if is_quantize(found.encode) else None
    return read if zero is None else replace(read, symmetric=bool((zero.astype(np.int32) == middle(read)).all()))
