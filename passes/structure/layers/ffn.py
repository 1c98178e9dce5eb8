"""Feed-forward blocks and lone projections, found by data flow whatever operators spell them out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.passes.structure.layers.branches import branch_nodes
from graphpress.passes.structure.layers.linear import Linear, linear

_CONTRIB = "com.microsoft"


@dataclass(frozen=True, eq=False)
class Block:
    """Linear -> activation -> Linear, or two Linears of one input, one of them activated, multiplied, -> Linear.

    Attributes:
        up: The first Linear [hidden, width]; of a gated block the one whose output the activation reads.
        down: The last Linear [out, hidden].
        activation: relu, gelu, gelu-tanh or silu.
        gate: The other factor of a gated block (SwiGLU, GeGLU), [hidden, width]; None in a plain one.
        inner: Every node between the input and ``down``, in no order.
        residual: Whether the block is on a branch around which its input is carried.
    """

    up: Linear
    down: Linear
    activation: str
    gate: Linear | None = None
    inner: tuple[ir.Node, ...] = ()
    residual: bool = False

    @property
    def name(self) -> str:
        """The name of its last product."""
        return self.down.node.name or ""

    @property
    def input(self) -> ir.Value:
        """[..., width]."""
        return self.up.input

    @property
    def hidden_value(self) -> ir.Value:
        """[..., hidden]: what ``down`` reads."""
        return self.down.input

    @property
    def output(self) -> ir.Value:
        """[..., out]."""
        return self.down.output

    @property
    def width(self) -> int:
        return self.up.shape[1]

    @property
    def hidden(self) -> int:
        return self.up.shape[0]

    @property
    def out(self) -> int:
        return self.down.shape[0]


@dataclass(frozen=True, eq=False)
class Projection:
    """A Linear alone on a residual branch: query, key, value, output of attention, and the like."""

    layer: Linear

    @property
    def name(self) -> str:
        return self.layer.node.name or ""

    @property
    def input(self) -> ir.Value:
        """[..., width]."""
        return self.layer.input

    @property
    def output(self) -> ir.Value:
        """[..., out]."""
        return self.layer.output


Found: TypeAlias = Block | Projection


@dataclass
class LayerBlocks:
    """Feed-forward blocks, lone projections, and the places that look like a block but are none: (name, why)."""

    blocks: list[Block] = field(default_factory=list)
    projections: list[Projection] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)


def layer_blocks(graph: ir.Graph) -> LayerBlocks:
    """The blocks and projections of one graph, in its order. Matrix products only: convolutions are none."""
    result, within = LayerBlocks(), branch_nodes(graph)
    layers = {view.node: view for n in graph if isinstance(view := _matrix(n), Linear)}
    taken: set[ir.Node] = set()
    for view in layers.values():
        found = _block(view, layers, within)
        if isinstance(found, str):
            if found:
                result.refused.append((view.node.name or "", found))
        else:
            result.blocks.append(found)
            taken.update(v.node for v in (found.up, found.down, found.gate) if v is not None)
    result.projections = [Projection(v) for n, v in layers.items() if n not in taken and n in within]
    return result


def _matrix(node: ir.Node) -> Linear | str:
    return linear(node) if node.op_type in ("MatMul", "Gemm") else "no matrix product"


@dataclass(frozen=True)
class _Activated:
    """What an activation reads, its name, and its nodes."""

    source: ir.Value
    kind: str
    nodes: tuple[ir.Node, ...]


def _block(down: Linear, layers: dict[ir.Node, Linear], within: set[ir.Node]) -> Block | str:
    """The block that ends in ``down``; why it is none, or "" where it does not look like one."""
    by_output = {view.output: view for view in layers.values()}
    found = activated(down.input)
    gate = None
    if found is None:
        gated = _gated(down.input, by_output)
        if gated is None:
            return ""
        found, gate, product = gated
        inner: tuple[ir.Node, ...] = (*found.nodes, product)
    else:
        inner = found.nodes
    up = by_output.get(found.source)
    if up is None:
        return ""
    inner += tuple(n for v in (up, gate) if v is not None for n in (v.node, v.add) if n is not None)
    if why := _refusal(up, gate, down, inner):
        return why
    return Block(up, down, found.kind, gate, inner, residual=down.node in within)


def _refusal(up: Linear, gate: Linear | None, down: Linear, inner: tuple[ir.Node, ...]) -> str:
    views = [v for v in (up, gate, down) if v is not None]
    if gate is not None and gate.input is not up.input:
        return "its two first products read different values"
    if gate is not None and gate.shape != up.shape:
        return "its two first products are of different sizes"
    if down.shape[1] != up.shape[0]:
        return "the products do not fit one another"
    if any(v.weight_value is not v.node.inputs[1] for v in views):
        return "its weights are quantized"
    if len({v.weight_value.dtype for v in views}) > 1:
        return "its weights are of different types"
    inside = {*inner, down.node}
    for node in inner:
        for value in node.outputs:
            if value.is_graph_output():
                return f"its inner value {value.name!r} is an output of the graph"
            if any(u.node not in inside for u in value.uses()):
                return f"its inner value {value.name!r} is read elsewhere too"
    return ""


def _gated(value: ir.Value, layers: dict[ir.Value, Linear]) -> tuple[_Activated, Linear, ir.Node] | None:
    product = value.producer()
    if product is None or product.op_type != "Mul" or product.domain:
        return None
    a, b = product.inputs
    for left, right in ((a, b), (b, a)):
        found = activated(left)
        other = layers.get(right) if right is not None else None
        if found is not None and other is not None and found.source in layers:
            return found, other, product
    return None


def activated(value: ir.Value | None) -> _Activated | None:
    """The activation that gives ``value``: its name, and what it reads."""
    node = value.producer() if value is not None else None
    if node is None or not node.inputs or node.inputs[0] is None:
        return None
    if node.domain == _CONTRIB and node.op_type == "Gelu":
        return _Activated(node.inputs[0], "gelu", (node,))
    if node.domain:
        return None
    if node.op_type == "Relu":
        return _Activated(node.inputs[0], "relu", (node,))
    if node.op_type == "Gelu":
        tanh = edit.attribute(node, "approximate", "none") == "tanh"
        return _Activated(node.inputs[0], "gelu-tanh" if tanh else "gelu", (node,))
    if node.op_type == "Swish" and edit.attribute(node, "alpha", 1.0) == 1.0:
        return _Activated(node.inputs[0], "silu", (node,))
    return _product(node) if node.op_type in ("Mul", "Div") else None


def _product(node: ir.Node) -> _Activated | None:
    """x Sigmoid(x), or Gelu spelled out: x / 2 (1 + erf(x / sqrt 2)), or its tanh form."""
    if node.op_type == "Mul":
        for x, other in (tuple(node.inputs), tuple(node.inputs)[::-1]):
            maker = other.producer() if other is not None else None
            if x is not None and maker is not None and _is(maker, "Sigmoid") and maker.inputs[0] is x:
                return _Activated(x, "silu", (node, maker))
    return _gelu(node)


def _gelu(last: ir.Node) -> _Activated | None:
    """By values: the one function of x that this tree of products computes is compared with Gelu on a few points."""
    tree = _tree(last)
    if tree is None:
        return None
    x, nodes = tree
    points = np.linspace(-4, 4, 17)
    got = _evaluate(last.outputs[0], x, points)
    if got is None:
        return None
    erf = np.array([math.erf(p / math.sqrt(2)) for p in points])
    exact = points / 2 * (1 + erf)
    tanh = points / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (points + 0.044715 * points**3)))
    for kind, wanted in (("gelu", exact), ("gelu-tanh", tanh)):
        if np.allclose(got, wanted, rtol=0, atol=2e-5):  # the two differ by up to 5e-4
            return _Activated(x, kind, nodes)
    return None


_POINTWISE = ("Mul", "Div", "Add", "Erf", "Tanh", "Pow")
_LARGEST = 12  # nodes of a Gelu that is spelled out, at most


def _tree(last: ir.Node) -> tuple[ir.Value, tuple[ir.Node, ...]] | None:
    """(the only value that is read from outside, the pointwise nodes between) or None."""
    nodes, pending, outside = [last], [last], set()
    while pending:
        for value in pending.pop().inputs:
            maker = value.producer() if value is not None else None
            if value is None or _number(value) is not None:
                continue
            if maker is None or not _is(maker, *_POINTWISE) or _adds_bias(maker):
                outside.add(value)
            elif maker not in nodes:
                nodes.append(maker)
                pending.append(maker)
        if len(nodes) > _LARGEST:
            return None
    has = any(_is(n, "Erf", "Tanh") for n in nodes)
    return (outside.pop(), tuple(nodes)) if has and len(outside) == 1 else None


def _adds_bias(node: ir.Node) -> bool:
    """Whether a node adds a constant vector: not of the formula, which adds 1 to erf and x to 0.044 x^3."""
    return node.op_type == "Add" and any(edit.is_constant(v) and _number(v) is None for v in node.inputs)


def _number(value: ir.Value | None) -> float | None:
    array = edit.constant(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def _evaluate(value: ir.Value, x: ir.Value, points: np.ndarray) -> np.ndarray | None:
    """What the tree gives for these x; None where it is not of the simple kind."""
    if value is x:
        return points
    if (number := _number(value)) is not None:
        return np.full_like(points, number)
    node = value.producer()
    if node is None:
        return None
    given = [_evaluate(v, x, points) for v in node.inputs if v is not None]
    if any(g is None for g in given) or not given:
        return None
    with np.errstate(all="ignore"):
        return _apply(node.op_type, [g for g in given if g is not None])


def _apply(op: str, given: list[np.ndarray]) -> np.ndarray | None:
    match op, given:
        case "Erf", [a]:
            return np.array([math.erf(v) for v in a])
        case "Tanh", [a]:
            return np.tanh(a)
        case "Mul", [a, b]:
            return a * b
        case "Div", [a, b]:
            return a / b
        case "Add", [a, b]:
            return a + b
        case "Pow", [a, b]:
            return a**b
    return None


def _is(node: ir.Node, *kinds: str) -> bool:
    return not node.domain and node.op_type in kinds


def names(found: Iterable[Found]) -> list[str]:
    """Their names in order."""
    return [f.name for f in found]
