"""Store what is quantized at compile time as integers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import edit, quantized
from graphpress.ops.base import detach_unused
from graphpress.passes.quantizers.huffman import huffman_bits
from graphpress.types import Numerics, Stage

STREAMED = 1 << 24  # bytes; a tensor at least this large that lives in a file is quantized each time it is read


@dataclass(frozen=True)
class FoldWeights(Pass):
    """Replace what encodes a constant by an initializer of codes with the name of its result; the float one goes.

    Bit for bit what ONNX Runtime's QuantizeLinear gives, per tensor, per channel and blocked, from 2 to 16 bits. One
    tensor is read at a time, and large ones that live in a file are not held: they are quantized on the way to the
    new file. Of formats of uneven spacing the report counts the bytes of codes, and of Huffman codes of them.
    """

    name = "fold-weights"
    numerics = Numerics.EXACT
    needs = (Stage.QDQ,)

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        made: dict[tuple[object, ...], ir.Value] = {}
        for node in edit.nodes(model):
            source = node.inputs[0] if quantized.encodes(node) else None
            tensor = edit.constant_tensor(source)
            if source is None or tensor is None:
                continue
            form = quantized.signature(node)
            if form is None or not isinstance(node.graph, ir.Graph):
                report.skip(node, "the scale is computed at run time, or this is a function, which has no initializers")
                continue
            key = (source, form, node.graph)
            if key in made:
                edit.replace(node.outputs[0], made[key])
                edit.remove_unused(node.outputs)
            else:
                codes = _codes(tensor, node)
                _count(codes, node, report)
                made[key] = _fold(node, node.graph, codes)
            report.changed += 1
        if report.changed:
            detach_unused(model)


def _count(codes: ir.TensorProtocol, node: ir.Node, report: PassReport) -> None:
    """Note what codes of uneven formats take, and would take as Huffman codes; large ones are not looked at."""
    if node.domain == "" or isinstance(codes, ir.LazyTensor):
        return
    for name, size in (("code bytes", codes.nbytes), ("code bytes, Huffman", -(-huffman_bits(codes.numpy()) // 8))):
        report.metrics[name] = float(report.metrics.get(name, 0.0)) + size


def _codes(tensor: ir.TensorProtocol, node: ir.Node) -> ir.TensorProtocol:
    storage = quantized.storage(node)
    assert storage is not None
    dtype = ir.DataType[storage.onnx.upper()]
    make = quantized.encoder(node)

    def integers() -> ir.Tensor[np.ndarray]:
        return ir.Tensor(make(tensor.numpy()).astype(dtype.numpy(), copy=False), dtype=dtype)

    if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes >= STREAMED:
        return ir.LazyTensor(integers, dtype=dtype, shape=ir.Shape(tensor.shape))
    return integers()


def _fold(node: ir.Node, scope: ir.Graph, integers: ir.TensorProtocol) -> ir.Value:
    out = node.outputs[0]
    value = edit.add_const(scope, integers, f"{out.name}_folded")
    edit.stand_for(out, value)
    edit.remove_unused([out])
    return value
