"""Linear layers in one view, whatever operator they are written with: weight [out, in, *kernel], bias [out]."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.graph.quantized import unquantized
from graphpress.graph.readers import bias_behind

FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True, eq=False)
class Linear:
    """A MatMul, Gemm or Conv with a constant weight, and the Add of a constant vector right behind a MatMul.

    Reading looks through Q -> DQ behind the weight; writing changes the float weight before them.

    Attributes:
        node: The MatMul, Gemm or Conv. Its input 0 is what it reads, its input 1 the weight.
        add: The Add that holds the bias of a MatMul, or None.
    """

    node: ir.Node
    add: ir.Node | None = None

    @property
    def input(self) -> ir.Value:
        """What the layer reads; with Q -> DQ before it, what comes out of those."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def output(self) -> ir.Value:
        """What the layer gives, bias included."""
        return (self.add or self.node).outputs[0]

    @property
    def groups(self) -> int:
        """Groups of a convolution; 1 for a matrix product."""
        return int(edit.attribute(self.node, "group", 1))

    @property
    def transposed(self) -> bool:
        """Whether the graph holds the weight as [in, out]."""
        return self.node.op_type == "MatMul" or not (
            self.node.op_type == "Conv" or edit.attribute(self.node, "transB", 0)
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """[out, in / groups, *kernel], without reading the elements."""
        tensor = edit.constant_tensor(self.weight_value)
        assert tensor is not None
        shape = tuple(tensor.shape.numpy())
        return shape[::-1] if self.transposed else shape

    @property
    def weight_value(self) -> ir.Value:
        """The constant that holds the weight, before any Q -> DQ."""
        value = unquantized(self.node.inputs[1])
        assert value is not None
        return value

    def weight(self) -> np.ndarray:
        """[out, in / groups, *kernel], of the graph's element type."""
        array = edit.constant(self.weight_value)
        assert array is not None
        return array.T if self.transposed else array

    def set_weight(self, weight: np.ndarray) -> None:
        """Put [out, in / groups, *kernel] in place of the weight, rounded once to the graph's element type.

        A weight that others read as well is copied for this layer.
        """
        value = self.weight_value
        assert value.dtype is not None
        stored = np.ascontiguousarray(weight.T if self.transposed else weight).astype(value.dtype.numpy())
        node, slot = next(((n, s) for n, s in value.uses() if self._reads(n)), (self.node, 1))
        edit.set_constant(node, slot, stored, "weight")

    def _reads(self, node: ir.Node) -> bool:
        """Whether ``node`` is the layer or the Q before its weight."""
        dq = self.node.inputs[1].producer() if self.node.inputs[1] is not None else None
        return node is self.node or (dq is not None and dq.inputs[0] is not None and dq.inputs[0].producer() is node)

    def bias(self) -> np.ndarray | None:
        """[out], or None where there is none."""
        slot = self._bias_slot()
        if slot is None:
            return None
        array = edit.constant(unquantized(slot[0].inputs[slot[1]]))
        assert array is not None
        return np.broadcast_to(array.reshape(-1), (self.shape[0],))

    def set_bias(self, bias: np.ndarray) -> None:
        """Put [out] in place of the bias, or give the layer one.

        A MatMul without one gets an Add behind it; the view is then stale: ask ``linear`` again.
        """
        dtype = self.weight_value.dtype
        assert dtype is not None
        stored = np.ascontiguousarray(bias).astype(dtype.numpy())
        if (slot := self._bias_slot()) is not None:
            edit.set_constant(slot[0], slot[1], stored, "bias")
        elif self.node.op_type != "MatMul":
            edit.set_constant(self.node, 2, stored, "bias")
        else:
            self._append(stored)

    def _append(self, bias: np.ndarray) -> None:
        old, graph = self.node.outputs[0], self.node.graph
        assert isinstance(graph, ir.Graph)
        constant = edit.add_const(graph, ir.Tensor(bias), f"{self.node.name}.bias")
        add = edit.new_node("Add", [old, constant], after=self.node, origin=self.node)
        edit.like(add.outputs[0], old)
        edit.replace(old, add.outputs[0])
        edit.set_input(add, 0, self.node.outputs[0])

    def _bias_slot(self) -> tuple[ir.Node, int] | None:
        if self.add is not None:
            return self.add, next(i for i, v in enumerate(self.add.inputs) if v is not self.node.outputs[0])
        has = self.node.op_type != "MatMul" and len(self.node.inputs) > 2 and self.node.inputs[2] is not None
        return (self.node, 2) if has else None


def linear(node: ir.Node) -> Linear | str:
    """The view of a node, or why it is no linear layer with a constant weight."""
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm", "Conv"):
        return f"{node.op_type} is no MatMul, Gemm or Conv"
    tensor = edit.constant_tensor(unquantized(node.inputs[1]))
    if tensor is None:
        return "the weight is computed"
    if tensor.dtype not in FLOATS:
        return f"the weight is {tensor.dtype}"
    if edit.is_constant(node.inputs[0]):
        return "its input is constant"
    if node.op_type == "Gemm":
        return _gemm(node, tensor.shape.numpy()[0 if edit.attribute(node, "transB", 0) else 1])
    if node.op_type == "MatMul":
        behind = bias_behind(node, tensor.shape.numpy()[1]) if len(tensor.shape) == 2 else None
        return "the weight is no matrix" if len(tensor.shape) != 2 else Linear(node, behind[0] if behind else None)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return Linear(node) if bias is None or edit.is_constant(unquantized(bias)) else "the bias is computed"


def _gemm(node: ir.Node, channels: int) -> Linear | str:
    if edit.attribute(node, "transA", 0) or edit.attribute(node, "alpha", 1.0) != 1.0:
        return "its input is transposed or scaled (transA, alpha)"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return Linear(node)
    tensor = edit.constant_tensor(unquantized(bias))
    if tensor is None or edit.attribute(node, "beta", 1.0) != 1.0:
        return "the bias is computed or scaled (beta)"
    shape = tuple(tensor.shape.numpy())
    return Linear(node) if shape in ((channels,), (1, channels), (1,), ()) else "the bias is no vector of its channels"


def layers(nodes: Iterator[ir.Node] | list[ir.Node]) -> list[Linear]:
    """The linear layers among some nodes, in their order."""
    found = (linear(n) for n in nodes if n.op_type in ("MatMul", "Gemm", "Conv"))
    return [view for view in found if isinstance(view, Linear)]
