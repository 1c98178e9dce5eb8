"""Write the canonical quantized forms into a graph: the only place where Q, DQ and dynamic quantization are built."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.keys import QUANTIZER
from graphpress.ops.base import DOMAIN, attach
from graphpress.ops.dynamic_quantize_token import OP as TOKEN
from graphpress.passes.quantize.step_tables import StepTables
from graphpress.passes.quantizers.named import named
from graphpress.passes.quantizers.quantizer import Form, QParams
from graphpress.types import AFFINE, PER_TENSOR, Kind, Scheme


@dataclass
class Emitter:
    """Builds each pair once: the readers of one value in one graph share it if they agree on group and scheme.

    A *group* stands for one scale and zero point: values of one group share these initializers. To be fed node by node
    in order of the graph, so that what the first reader makes stands before the others.
    """

    model: ir.Model
    tables: StepTables | None = None
    _pairs: dict[Hashable, ir.Value] = field(default_factory=dict)
    _grids: dict[ir.Value, Hashable] = field(default_factory=dict)
    _constants: dict[Hashable, dict[str, ir.Value]] = field(default_factory=dict)

    def output(self, value: ir.Value, group: Hashable, params: QParams, scheme: Scheme, origin: ir.Node) -> None:
        """Let every reader of ``value``, the caller of the model included, read it through Q -> DQ."""
        producer = value.producer()
        assert producer is not None, "an output has a producer"
        q, dq = self._pair(value, group, params, scheme, origin, after=producer)
        edit.replace(value, dq.outputs[0])
        edit.set_input(q, 0, value)

    def input(self, node: ir.Node, slot: int, group: Hashable, params: QParams, scheme: Scheme) -> None:
        """Let input ``slot`` of ``node`` read its value through Q -> DQ."""
        value = node.inputs[slot]
        assert value is not None
        if self._grids.get(value) == (group, scheme):
            return
        key = (value, group, scheme, node.graph)
        if key not in self._pairs:
            q, dq = self._pair(value, group, params, scheme, node, after=None)
            self._pairs[key] = dq.outputs[0]
            if scheme.dtype != scheme.storage:
                edit.set_input(node, slot, dq.outputs[0])  # so that q may be the only reader
                _within(q, value, params, scheme)
        edit.set_input(node, slot, self._pairs[key])

    def dynamic(self, node: ir.Node, slot: int, scheme: Scheme) -> None:
        """Let input ``slot`` of ``node`` read its value through quantization at run time."""
        value = node.inputs[slot]
        assert value is not None
        key = (value, scheme, node.graph)
        if key not in self._pairs:
            by_token = scheme.granularity.kind is Kind.TOKEN
            self._pairs[key] = self._by_token(node, value, scheme.bits) if by_token else _by_tensor(node, value)
        edit.set_input(node, slot, self._pairs[key])

    def _pair(
        self, value: ir.Value, group: Hashable, params: QParams, scheme: Scheme, origin: ir.Node, after: ir.Node | None
    ) -> tuple[ir.Node, ir.Node]:
        """What encodes and what decodes, behind ``after``, or else before ``origin``."""
        quantizer = named(scheme.quantizer)
        operands = self._parameters(value, group, params, scheme, after or origin)
        q = self._converter(quantizer.encode, value, operands, scheme, origin, before=after is None, after=after)
        edit.like(q.outputs[0], value, ir.DataType(edit.attribute(q, "dtype", 0) or scheme.ir_dtype))
        dq = self._converter(quantizer.decode, q.outputs[0], operands, scheme, origin, before=False, after=q)
        edit.like(dq.outputs[0], value)
        self._grids[dq.outputs[0]] = (group, scheme)
        return q, dq

    def _converter(
        self, form: Form, value: ir.Value, operands: Mapping[str, ir.Value], scheme: Scheme, origin: ir.Node,
        *, before: bool, after: ir.Node | None,
    ) -> ir.Node:  # fmt: skip
        if form.op is not None:
            attach(self.model, form.op)
        inputs = [value, *(operands[name] for name in form.operands)]
        attributes = _attributes(scheme) | named(scheme.quantizer).attributes(form, scheme)
        scale = operands["scale"]
        if not edit.is_constant(scale) and scale.shape is not None and len(scale.shape):
            attributes["axis"] = 0  # of samples
        made = edit.new_node(
            form.op_type, inputs, attributes, origin=origin, before=origin if before else None, after=after,
            domain=form.domain,
        )  # fmt: skip
        if scheme.quantizer != AFFINE:
            made.metadata_props[QUANTIZER] = scheme.quantizer
        return made

    def _parameters(
        self, value: ir.Value, group: Hashable, params: QParams, scheme: Scheme, anchor: ir.Node
    ) -> dict[str, ir.Value]:
        graph, quantizer = anchor.graph, named(scheme.quantizer)
        assert isinstance(graph, ir.Graph)
        dtype = value.dtype or ir.DataType.FLOAT
        key = (group, scheme, graph, dtype)
        if key not in self._constants:
            arrays = {n: params.operand(n) for n in (*quantizer.encode.operands, *quantizer.decode.operands)}
            held = ir.DataType[quantizer.scale_dtype.upper()] if quantizer.scale_dtype else dtype
            arrays["scale"] = _scale(params.scale, held)
            arrays |= {n: _typed(arrays[n], dtype) for n in quantizer.beside if n in arrays}
            for name in ("scale", *quantizer.beside) if quantizer.decode.op is not None else ():
                if name in arrays:
                    arrays[name] = _ranked(arrays[name], len(value.shape or ()), scheme)
            if "zero_point" in arrays:
                arrays["zero_point"] = np.asarray(params.zero_point).astype(scheme.ir_dtype.numpy())
            self._constants[key] = self._held(graph, arrays, value.name or "", scheme)
        return self._constants[key]

    def _held(
        self, graph: ir.Graph, arrays: Mapping[str, np.ndarray], name: str, scheme: Scheme
    ) -> dict[str, ir.Value]:
        """Constants; of a scale for each range of steps those of the step."""
        if self.tables is None or scheme.granularity != PER_TENSOR or not arrays["scale"].ndim:
            return {n: edit.add_const(graph, a, f"{name}_{n}") for n, a in arrays.items()}
        held = {n: edit.add_const(self.model.graph, a, f"{name}_{n}_by_step") for n, a in arrays.items()}
        return {n: self.tables.gather(v, f"{name}_{n}_of_step") for n, v in held.items()}

    def _by_token(self, node: ir.Node, value: ir.Value, bits: int) -> ir.Value:
        attach(self.model, TOKEN)
        attributes = {} if bits == 8 else {"bits": bits}
        made = edit.new_node(TOKEN.name, [value], attributes, before=node, origin=node, outputs=2, domain=DOMAIN)
        q, scale = made.outputs
        edit.like(q, value, ir.DataType.INT8)
        scale.type = value.type
        scale.shape = ir.Shape([*list(value.shape)[:-1], 1]) if value.shape is not None else None
        to_float = edit.new_node("Cast", [q], {"to": ir.DataType.FLOAT}, before=node, origin=node)
        scaled = edit.new_node("Mul", [edit.like(to_float.outputs[0], value), scale], before=node, origin=node)
        return edit.like(scaled.outputs[0], value)


def _within(q: ir.Node, value: ir.Value, params: QParams, scheme: Scheme) -> None:
    """Clip a weight to what rounds to the codes of its scheme, as Q saturates at those of the storage type."""
    array = edit.constant(value)
    assert array is not None, "a type that ONNX lacks is for weights"
    clipped = named(scheme.quantizer).clipped(array.astype(np.float32), params, scheme)
    edit.set_constant(q, 0, clipped.astype(array.dtype), "weight")


def _by_tensor(node: ir.Node, value: ir.Value) -> ir.Value:
    made = edit.new_node("DynamicQuantizeLinear", [value], before=node, origin=node, outputs=3)
    q, scale, zero = made.outputs
    edit.like(q, value, ir.DataType.UINT8)
    for scalar, dtype in ((scale, ir.DataType.FLOAT), (zero, ir.DataType.UINT8)):
        scalar.shape, scalar.type = ir.Shape([]), ir.TensorType(dtype)
    dq = edit.new_node("DequantizeLinear", [q, scale, zero], before=node, origin=node)
    return edit.like(dq.outputs[0], value)


def _attributes(scheme: Scheme) -> dict[str, Any]:
    granularity = scheme.granularity
    attributes = {} if granularity.axis is None else {"axis": granularity.axis}
    return attributes if granularity.group_size is None else attributes | {"block_size": granularity.group_size}


def _ranked(scale: np.ndarray, rank: int, scheme: Scheme) -> np.ndarray:
    """The scale with as many axes as the tensor."""
    axis, grouped = scheme.granularity.axis, scheme.granularity.kind is Kind.GROUP
    return scale if grouped else scale.reshape([-1 if i == axis else 1 for i in range(rank)])


def _typed(array: np.ndarray, dtype: ir.DataType) -> np.ndarray:
    """Floats in the type of the values; integers as they are."""
    return array.astype(dtype.numpy()) if np.issubdtype(array.dtype, np.floating) else array


def _scale(scale: np.ndarray, dtype: ir.DataType) -> np.ndarray:
    """The scale in the type of the values, as Q wants it; never rounded to zero."""
    wanted = dtype.numpy()
    cast = np.asarray(scale, np.float32).astype(wanted)
    smallest = {ir.DataType.FLOAT16: 2.0**-24, ir.DataType.BFLOAT16: 2.0**-126}.get(dtype)
    return cast if smallest is None else np.where(cast > 0, cast, np.asarray(smallest, wanted))
