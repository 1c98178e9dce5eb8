"""Linear layers whose float weight stands before Q -> DQ: the weight as rows, its grid, and how both are written."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.contracts import PassReport
from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.keys import SCHEME, SPARSITY
from graphpress.passes.quantizers.affine import AFFINE
from graphpress.passes.quantizers.quantizer import QParams
from graphpress.passes.structure.layers.linear import Linear, linear
from graphpress.scale import middle
from graphpress.types import PER_TENSOR, Granularity, Kind, Scheme, per_channel, per_group

_INTEGERS = ("INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2", "INT16", "UINT16")


@dataclass(frozen=True, eq=False)
class Quantized:
    """A layer and the grid of its weight. Rows are [out, K], K = in / groups * prod(kernel).

    Attributes:
        layer: The layer; its weight is the float one before Q.
        q, dq: The pair.
        scheme: Of the weight; axes are of the stored tensor.
    """

    layer: Linear
    q: ir.Node
    dq: ir.Node
    scheme: Scheme

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
    def pruned(self) -> bool:
        """Whether zeros of the weight have to stay."""
        return SPARSITY in self.layer.node.metadata_props

    def weight(self) -> np.ndarray:
        """float32 [out, K]."""
        return self.rows(self._stored())

    def params(self) -> QParams:
        """As the graph has them, the scale in float32."""
        scale, zero = (edit.constant(v) for v in self.q.inputs[1:3])
        assert scale is not None and zero is not None
        return QParams(scale.astype(np.float32), zero)

    def rounded(self, params: QParams) -> np.ndarray:
        """[out, K]: what Q -> DQ makes of the weight."""
        return self.rows(AFFINE.dequantize(AFFINE.quantize(self._stored(), params, self.scheme), params, self.scheme))

    def spread(self, params: QParams) -> tuple[np.ndarray, np.ndarray]:
        """(float32 scale, int32 zero point) of each element, [out, K]."""
        ones = np.ones(self._shape, np.int16)
        nothing = np.zeros(params.scale.shape, np.int16)
        zeros = params.zero_point.astype(np.int32).astype(np.float32)
        parts = [AFFINE.dequantize(ones, QParams(p, nothing), self.scheme) for p in (params.scale, zeros)]
        return self.rows(parts[0]), self.rows(parts[1]).astype(np.int32)

    def gathered(self, scale: np.ndarray, zero: np.ndarray) -> QParams:
        """The inverse of ``spread``."""
        params, axis = self.params(), self.scheme.granularity.axis
        picks: list[slice | int] = [slice(None)] * len(self._shape)
        if axis is None:
            picks = [0] * len(picks)
        elif self.scheme.granularity.kind is Kind.CHANNEL:
            picks = [slice(None) if i == axis else 0 for i in range(len(picks))]
        else:
            picks[axis] = slice(None, None, self.scheme.granularity.group_size)
        found = (self.stored(a)[tuple(picks)] for a in (scale, zero))
        shape = params.scale.shape
        scales, zeros = (np.ascontiguousarray(a).reshape(shape) for a in found)
        return QParams(scales.astype(np.float32), zeros.astype(params.zero_point.dtype))

    def cast(self, params: QParams) -> QParams:
        """With the scale rounded to the type that the graph holds it in."""
        scale = self.q.inputs[1]
        assert scale is not None and scale.dtype is not None
        wanted = scale.dtype.numpy()
        rounded = params.scale.astype(wanted)
        smallest = np.finfo(np.float32).tiny if wanted == np.float32 else np.float32(2.0**-24)
        return QParams(np.maximum(rounded.astype(np.float32), smallest), params.zero_point)

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
        for slot, array in ((1, params.scale), (2, params.zero_point)):
            value = self.q.inputs[slot]
            assert value is not None and value.dtype is not None and isinstance(self.q.graph, ir.Graph)
            stored = np.ascontiguousarray(array).astype(value.dtype.numpy())
            if {u.node for u in value.uses()} <= {self.q, self.dq}:
                edit.overwrite(value, stored)
            else:
                new = edit.add_const(self.q.graph, stored, value.name or "scale")
                edit.set_input(self.q, slot, new)
                edit.set_input(self.dq, slot, new)

    @property
    def _shape(self) -> tuple[int, ...]:
        shape = self.layer.shape
        return shape[::-1] if self.layer.transposed else shape

    def _stored(self) -> np.ndarray:
        array = edit.constant(self.layer.weight_value)
        assert array is not None
        return array.astype(np.float32)


def find(model: ir.Model, report: PassReport) -> list[Quantized]:
    """The layers of the main graph with a quantized weight, in order; a Skip for each weight that is none of theirs."""
    found = []
    for node in edit.nodes(model):
        if node.op_type != "DequantizeLinear" or node.domain != "":
            continue
        for use in node.outputs[0].uses():
            seen = _site(model, node, use.node, use.idx)
            if isinstance(seen, Quantized):
                found.append(seen)
            elif seen:
                report.skip(use.node, seen)
    return found


def _site(model: ir.Model, dq: ir.Node, reader: ir.Node, slot: int) -> Quantized | str:
    """The layer that reads a weight; why it is none; '' where that is no weight."""
    codes = dq.inputs[0]
    q = codes.producer() if codes is not None else None
    if edit.is_constant(codes) and slot == 1:
        return "its weight is made of integers already; put gptq before the passes that fold"
    if q is None or q.op_type != "QuantizeLinear" or not edit.is_constant(q.inputs[0]):
        return ""
    layer = linear(reader) if slot == 1 else f"input {slot} of {reader.op_type} is no weight of a linear layer"
    if isinstance(layer, str):
        return layer
    if reader.graph is not model.graph:
        return "it is in a body of control flow, which the walk over the main graph does not reach"
    if len(dq.outputs[0].uses()) > 1 or len(q.outputs[0].uses()) > 1:
        return f"its weight is shared by {max(len(dq.outputs[0].uses()), len(q.outputs[0].uses()))} readers"
    return _grid(layer, q, dq)


def _grid(layer: Linear, q: ir.Node, dq: ir.Node) -> Quantized | str:
    scale, zero = (edit.constant(v) for v in (*q.inputs[1:3], None, None)[:2])
    dtype = q.outputs[0].dtype or (q.inputs[2].dtype if len(q.inputs) > 2 and q.inputs[2] is not None else None)
    if scale is None or zero is None or dtype is None or dtype.name not in _INTEGERS:
        return "its scale or zero point is not constant, or its type is no integer"
    if tuple(q.inputs[1:3]) != tuple(dq.inputs[1:3]):
        return "Q and DQ have different scales"
    return Quantized(layer, q, dq, _scheme(layer, q, dtype, scale, zero))


def _scheme(layer: Linear, q: ir.Node, dtype: ir.DataType, scale: np.ndarray, zero: np.ndarray) -> Scheme:
    """As noted by the pass that wrote the pair, or else read off it."""
    block = int(edit.attribute(q, "block_size", 0))
    granularity: Granularity = PER_TENSOR
    if scale.size > 1 or block:
        axis = int(edit.attribute(q, "axis", 1)) % len(layer.shape)
        granularity = per_group(axis, block) if block else per_channel(axis)
    for part in layer.node.metadata_props.get(SCHEME, "").split("; "):
        edge, _, words = part.partition(" ")
        if edge == "weight[1]":
            try:
                noted = Scheme.parse(words)
            except BadRequest:
                break
            if noted.storage == dtype.name.lower():
                return Scheme(noted.dtype, granularity, noted.symmetric, observer=noted.observer)
    found = Scheme(dtype.name.lower(), granularity)
    symmetric = bool((zero.astype(np.int32) == middle(found)).all())
    return Scheme(found.dtype, granularity, symmetric)
