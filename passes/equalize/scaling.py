"""Where the channels of a value can be divided by factors without a new operator: in what makes them, found backwards.

A positive factor of each channel passes through a gain, the rows of a linear layer and its bias, an elementwise
product (into one side), Relu, movement of data, and attention from its output to its values. Everything else stops it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.passes.structure.layers.linear import Linear, layers

NORMS = ("RMSNormalization", "LayerNormalization", "SimplifiedLayerNormalization")
_FLAT = ("Relu", "LeakyRelu", "Identity", "Dropout")


@dataclass
class Carrier:
    """What divides the channels of a value.

    Attributes:
        labels: [copies, channels]: the channels of the value that each channel of the carrier becomes (more than one
            where heads of values are shared).
        vectors: Constant inputs (node, slot) that are scaled along their last axis.
        layer: The layer whose rows and bias are scaled, or None.
    """

    labels: np.ndarray
    vectors: list[tuple[ir.Node, int]] = field(default_factory=list)
    layer: Linear | None = None

    def divide(self, factor: np.ndarray) -> None:
        """Divide each channel by its factor, positive [channels]."""
        for node, slot in self.vectors:
            array = edit.constant(node.inputs[slot])
            assert array is not None
            edit.set_constant(node, slot, (array / factor).astype(array.dtype), "scaled")
        if self.layer is not None:
            weight, bias = self.layer.weight(), self.layer.bias()
            self.layer.set_weight(weight / factor.reshape(-1, *[1] * (weight.ndim - 1)))
            if bias is not None:
                self.layer.set_bias(bias / factor)


def carrier(value: ir.Value, readers: int) -> Carrier | str:
    """The carrier of the last axis of ``value``, or what stops a factor on the way.

    Args:
        value: Of the main graph or a body.
        readers: How many uses of it will be made good by the caller.
    """
    if value.is_graph_output() or len(value.uses()) != readers:
        return f"{value.name!r} is an output of the graph, or others read it too"
    width = _width(value)
    if width is None or value.shape is None:
        return f"the size of the last axis of {value.name!r} is unknown"
    labels = np.arange(width).reshape(1, *[1] * (len(value.shape) - 1), width)
    return _back(value, labels)


def _width(value: ir.Value) -> int | None:
    last = value.shape[-1] if value.shape is not None and len(value.shape) else None
    return last if isinstance(last, int) else None


def _back(value: ir.Value, labels: np.ndarray) -> Carrier | str:
    """``labels``: [copies, *axes of the value], 1 along axes without channels."""
    node = value.producer()
    if node is None:
        return f"{value.name!r} is an input"
    layer = _layer_of(value)
    if layer is not None:
        flat = _flat(labels)
        return f"heads stand apart where {node.name!r} writes" if flat is None else Carrier(flat, layer=layer)
    step = _STEPS.get(node.op_type) if node.domain == "" else None
    return f"{node.op_type} {node.name!r} lets no factor pass" if step is None else step(node, labels)


def _layer_of(value: ir.Value) -> Linear | None:
    """The linear layer that gives ``value``, its bias included, where that runs along the last axis."""
    node = value.producer()
    makers = [node, *(v.producer() for v in node.inputs if v is not None)] if node is not None else []
    for layer in layers([n for n in makers if n is not None]):
        if layer.output is value and layer.node.op_type != "Conv":
            return layer
    return None


def _flat(labels: np.ndarray) -> np.ndarray | None:
    """[copies, channels] where all channels stand on the last axis."""
    return labels.reshape(len(labels), -1) if labels.shape[-1] == labels[0].size else None


def _on(value: ir.Value | None, labels: np.ndarray) -> Carrier | str:
    """Further back through an input that nobody else reads."""
    assert value is not None
    if value.is_graph_output() or len(value.uses()) != 1:
        return f"{value.name!r} is an output of the graph, or others read it too"
    return _back(value, labels)


def _vector(node: ir.Node, slot: int, labels: np.ndarray) -> Carrier | None:
    """A constant of one number for each channel of the last axis."""
    flat, tensor = _flat(labels), edit.constant_tensor(node.inputs[slot] if slot < len(node.inputs) else None)
    if flat is None or tensor is None or len(flat) > 1:
        return None
    shape = tuple(tensor.shape.numpy())
    return Carrier(flat, [(node, slot)]) if shape[-1:] == (flat.size,) and np.prod(shape) == flat.size else None


def _norm(node: ir.Node, labels: np.ndarray) -> Carrier | str:
    rank = len(node.inputs[0].shape) if node.inputs[0] is not None and node.inputs[0].shape is not None else 0
    found = _vector(node, 1, labels)
    if found is None or edit.attribute(node, "axis", -1) not in (-1, rank - 1):
        return f"the gain of {node.name!r} is not one constant for each channel"
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = _vector(node, 2, labels)
        if bias is None:
            return f"the bias of {node.name!r} is not one constant for each channel"
        found.vectors += bias.vectors
    return found


def _product(node: ir.Node, labels: np.ndarray) -> Carrier | str:
    tried = []
    for slot in (0, 1):
        if (found := _vector(node, slot, labels)) is not None:
            return found
    for slot in (1, 0):
        value = node.inputs[slot]
        if _same_channels(value, labels):
            further = _on(value, labels)
            if isinstance(further, Carrier):
                return further
            tried.append(further)
    return "; ".join(tried) or f"no side of {node.name!r} has its channels"


def _same_channels(value: ir.Value | None, labels: np.ndarray) -> bool:
    """Whether the operand has all the channels itself: none comes of broadcasting."""
    axes = labels.shape[1:]
    if value is None or edit.is_constant(value) or value.shape is None or len(value.shape) != len(axes):
        return False
    return all(n == 1 or value.shape[i] == n for i, n in enumerate(axes))


def _sum(node: ir.Node, labels: np.ndarray) -> Carrier | str:
    """A constant added to each channel; a computed sum would have to share the factor."""
    for slot in (0, 1):
        if (added := _vector(node, slot, labels)) is not None:
            further = _on(node.inputs[1 - slot], labels)
            if isinstance(further, Carrier):
                further.vectors += added.vectors
            return further
    return f"{node.name!r} adds two computed values"


def _same(node: ir.Node, labels: np.ndarray) -> Carrier | str:
    return _on(node.inputs[0], labels)


def _reshape(node: ir.Node, labels: np.ndarray) -> Carrier | str:
    source = node.inputs[0]
    assert source is not None
    channels = labels[0].size
    sizes: list[int] = []
    leading = next((i for i, n in enumerate(labels.shape[1:]) if n != 1), labels.ndim - 2)
    if np.prod(labels.shape[1 + leading :]) != channels or source.shape is None:
        return f"{node.name!r} moves channels in a way that is not followed"
    for size in reversed(list(source.shape)):
        if np.prod([1, *sizes]) == channels:
            break
        if not isinstance(size, int):
            return f"{node.name!r} has an open size among its channels"
        sizes.insert(0, size)
    if np.prod([1, *sizes]) != channels or not _whole(node.outputs[0], labels, leading):
        return f"{node.name!r} joins channels with other axes"
    return _on(source, labels.reshape(len(labels), *[1] * (len(source.shape) - len(sizes)), *sizes))


def _whole(value: ir.Value, labels: np.ndarray, leading: int) -> bool:
    """Whether every axis from the first one with channels on is one of channels."""
    if value.shape is None:
        return False
    return all(value.shape[i] == labels.shape[1 + i] for i in range(leading, labels.ndim - 1))


def _transpose(node: ir.Node, labels: np.ndarray) -> Carrier | str:
    rank = labels.ndim - 1
    perm = edit.attribute(node, "perm", tuple(range(rank))[::-1])
    back = np.argsort(perm)
    return _on(node.inputs[0], labels.transpose(0, *(1 + int(i) for i in back)))


def _matmul(node: ir.Node, labels: np.ndarray) -> Carrier | str:
    """Mixes the rows of its second operand: attention spelled out. Heads are batches of both."""
    value = node.inputs[1]
    if labels.ndim < 3 or labels.shape[-2] != 1 or not _same_channels(value, labels):
        return f"MatMul {node.name!r} lets no factor pass"
    return _on(value, labels)


def _attention(node: ir.Node, labels: np.ndarray) -> Carrier | str:
    """From the output of Attention to its values; query heads that share values become copies."""
    if len(node.inputs) < 3 or any(v is not None for v in node.inputs[4:]) or len(node.outputs) > 1:
        return f"Attention {node.name!r} keeps its values elsewhere too"
    value, rank = node.inputs[2], labels.ndim - 1
    if value is None or value.shape is None or len(value.shape) != rank:
        return f"the values of {node.name!r} have an unknown shape"
    if rank == 3:
        heads, kept = (edit.attribute(node, f"{kind}_num_heads", 0) for kind in ("q", "kv"))
        by_head = labels.reshape(len(labels), heads or 1, -1)
    else:
        heads, kept = labels.shape[2], value.shape[1]
        by_head = labels.reshape(len(labels), heads, -1)
    if not isinstance(kept, int) or not kept or heads % kept:
        return f"the heads of {node.name!r} are unknown"
    copies = by_head.reshape(len(labels), kept, heads // kept, -1).transpose(0, 2, 1, 3)
    every, size = len(labels) * (heads // kept), copies.shape[-1]
    shape = (1, 1, kept * size) if rank == 3 else (1, kept, 1, size)
    return _on(value, copies.reshape(every, *shape))


_STEPS: dict[str, Callable[[ir.Node, np.ndarray], Carrier | str]] = {
    **dict.fromkeys(NORMS, _norm), **dict.fromkeys(_FLAT, _same), "Mul": _product, "Add": _sum, "Reshape": _reshape,
    "Transpose": _transpose, "MatMul": _matmul, "Attention": _attention,
}  # fmt: skip
