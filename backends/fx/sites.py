"""Which nodes of a quantized graph one kernel computes: a product with what stands around it.

``x -> DQ``, ``codes -> DQ``, the product, an Add of a bias, Relu and Q become one call. What the target's table allows
and what a kernel refuses is decided elsewhere; here is only the form.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.backends import canonical
from graphpress.backends.canonical import Activation, Weight
from graphpress.graph import edit, quantized
from graphpress.graph.quantized import floats
from graphpress.graph.readers import only_reader, plain_gemm

PRODUCTS = ("MatMul", "Gemm", "Conv")


@dataclass(frozen=True)
class ProductSite:
    """One product of quantized operands, or of float ones with a quantized weight.

    Attributes:
        node: The product.
        x: Its activation; None where it is float.
        weight: Its weight: codes with scales.
        bias: Float32, [channels], or None.
        relu: Relu follows.
        quantizer: The Q behind, with a constant scale of the whole tensor; None where floats come out.
        tail: The last node that the kernel stands for.
        covered: The nodes that it stands for.
        readers: What makes floats of the codes, for it and perhaps for others: the nearest first.
    """

    node: ir.Node
    x: Activation | None
    weight: Weight
    bias: np.ndarray | None
    relu: bool
    quantizer: ir.Node | None
    tail: ir.Node
    covered: frozenset[ir.Node]
    readers: tuple[ir.Node, ...]

    @property
    def mode(self) -> str:
        """As in a target's table: static, dynamic or weight."""
        return "weight" if self.x is None else "static" if self.x.kind == "static" else "dynamic"

    @property
    def codes(self) -> np.ndarray:
        """Weight codes as torch's modules have them: [out, in] or [out, in / groups, *kernel]."""
        codes = self.weight.codes
        return codes if self.node.op_type == "Conv" or self.transposed else np.ascontiguousarray(codes.T)

    @property
    def transposed(self) -> bool:
        """Whether a matrix is stored as [out, in] already."""
        return self.node.op_type == "Gemm" and bool(edit.attribute(self.node, "transB", 0))

    @property
    def output_parameters(self) -> tuple[float, int, str] | None:
        """(scale, zero_point, storage type) of the Q behind."""
        return None if self.quantizer is None else parameters(self.quantizer)

    @property
    def input_parameters(self) -> tuple[float, int, str] | None:
        """(scale, zero_point, storage type) of a static activation."""
        if self.x is None or self.x.kind != "static":
            return None
        scale, zero = edit.constant(self.x.scale), edit.constant(self.x.zero)
        dtype = self.x.codes.dtype
        assert scale is not None
        name = zero.dtype.name if zero is not None else dtype.name.lower() if dtype is not None else "uint8"
        return float(scale.reshape(-1)[0]), 0 if zero is None else int(zero.reshape(-1)[0]), name


def product_site(node: ir.Node) -> ProductSite | None:
    """The site of a product with a quantized weight; None where there is none."""
    if node.domain or node.op_type not in PRODUCTS or len(node.inputs) < 2 or node.graph is None:
        return None
    weight = canonical.weight(node.inputs[1]) or quantized.expanded(node.inputs[1]) or _float8(node.inputs[1])
    x = canonical.activation(node.inputs[0])
    if weight is None or not plain_gemm(node) or (x is not None and not _per_tensor(x)):
        return None
    bias, fine = _own_bias(node, weight)
    if not fine:
        return None
    covered, tail, value, added = {node}, node, node.outputs[0], node
    if bias is None and (found := _added(node, weight)) is not None:
        bias, added = found
        covered.add(added)
        tail, value = added, added.outputs[0]
    relu = _next(value, "Relu")
    if relu is not None:
        covered.add(relu)
        tail, value = relu, relu.outputs[0]
    quantizer = _next(value, "QuantizeLinear") if x is not None else None
    if quantizer is not None and parameters(quantizer) is None:
        quantizer = None
    if quantizer is not None:
        covered.add(quantizer)
        tail = quantizer
    biases = [v.producer() for n in (node, added) for v in n.inputs if v is not None]
    stored = [n for n in biases if quantized.decodes(n) and edit.is_constant(n.inputs[0])]
    readers = (weight.node, *stored, *(() if x is None else _readers(node.inputs[0], x)))
    return ProductSite(node, x, weight, bias, relu is not None, quantizer, tail, frozenset(covered), readers)


def _readers(value: ir.Value | None, x: Activation) -> list[ir.Node]:
    """What stands between the codes and the product, nearest first; codes made at run time with it."""
    found: list[ir.Node] = []
    stop = x.source if x.kind != "static" else x.codes
    while value is not None and value is not stop and (node := value.producer()) is not None:
        found.append(node)
        value = node.inputs[0]
    return found


def replaced(sites: Iterable[ProductSite]) -> set[ir.Node]:
    """The nodes that need not be computed any more: what kernels stand for, and what only these read."""
    found = list(sites)
    gone = {node for site in found for node in site.covered}
    for node in (reader for site in found for reader in site.readers):
        if all(u.node in gone for v in node.outputs for u in v.uses()) and not node.outputs[0].is_graph_output():
            gone.add(node)
    return gone


def parameters(quantizer: ir.Node) -> tuple[float, int, str] | None:
    """(scale, zero_point, storage type) of a QuantizeLinear to 8 bits by one constant scale, or None."""
    scale = edit.constant(quantizer.inputs[1])
    zero = edit.constant(quantizer.inputs[2] if len(quantizer.inputs) > 2 else None)
    out = quantizer.outputs[0].dtype
    name = zero.dtype.name if zero is not None else out.name.lower() if out is not None else "uint8"
    if scale is None or scale.size != 1 or name not in ("int8", "uint8"):
        return None
    return float(scale.reshape(-1)[0]), 0 if zero is None else int(zero.reshape(-1)[0]), name


def _float8(value: ir.Value | None) -> Weight | None:
    """A weight of 8-bit floats behind a DequantizeLinear of constants."""
    found = quantized.small_floats(value)
    return found if found is not None and found.dtype == ir.DataType.FLOAT8E4M3FN else None


def _per_tensor(x: Activation) -> bool:
    scale = edit.constant(x.scale)
    return x.kind != "static" or (scale is not None and scale.size == 1)


def _own_bias(node: ir.Node, weight: Weight) -> tuple[np.ndarray | None, bool]:
    """(the bias input as [channels] floats, whether it is one that a kernel can take). Gemm's C may be anything that
    broadcasts to [M, N]: a column or a matrix is no bias."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return None, True
    bias, channels = floats(value), _channels(node, weight)
    if bias is None or channels is None or not _is_row(bias, channels):
        return None, False
    return np.broadcast_to(bias.reshape(-1), channels).copy(), True


def _added(node: ir.Node, weight: Weight) -> tuple[np.ndarray, ir.Node] | None:
    """A bias that the only reader of a matrix product adds, and that reader. It does not add axes."""
    found = only_reader(node.outputs[0], "Add")
    if found is None or node.op_type == "Conv":
        return None
    add, slot = found
    bias, channels, shape = floats(add.inputs[1 - slot]), _channels(node, weight), node.outputs[0].shape
    rank = 1 if shape is None else len(shape)
    if bias is None or channels is None or bias.ndim > rank or not _is_row(bias, channels) or bias.size != channels:
        return None
    return bias.reshape(-1), add


def _channels(node: ir.Node, weight: Weight) -> int | None:
    shape = weight.value.shape
    first = node.op_type == "Conv" or (node.op_type == "Gemm" and edit.attribute(node, "transB", 0))
    found = None if shape is None else shape[0 if first else -1]
    return found if isinstance(found, int) else None


def _is_row(bias: np.ndarray, channels: int) -> bool:
    """Whether an array goes along the last axis alone, one number for each channel or one for all."""
    return bias.size == 1 or (bias.size == channels and bias.shape[-1] == channels)


def _next(value: ir.Value, op_type: str) -> ir.Node | None:
    """The node of this type that alone reads ``value``, as what it works on."""
    found = only_reader(value, op_type)
    return found[0] if found is not None and found[1] == 0 else None
