"""Feed-forward blocks and lone projections, found by data flow whatever operators spell them out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

import onnx_ir as ir

from graphpress.graph.movement import Way, moves
from graphpress.passes.structure.channels.lanes import dims
from graphpress.passes.structure.layers.activations import Activated, activated
from graphpress.passes.structure.layers.branches import branch_nodes
from graphpress.passes.structure.layers.linear import Linear, linear
from graphpress.passes.structure.layers.rows import Part, Reached, reached, through


@dataclass(frozen=True, eq=False)
class Block:
    """Linear -> activation -> Linear, or two Linears of one input, one of them activated, multiplied, -> Linear.

    Reshapes of the leading axes (GPT-2's Conv1D), dropout and identities may stand between, and the two first products
    of a gated block may be rows of one layer that is split.

    Attributes:
        up: The first Linear [hidden, width]; of a gated block the one whose output the activation reads.
        down: The last Linear [out, hidden].
        activation: One of those of ``activations.activated``.
        input: [..., width]: what the first products read, with the leading axes that ``output`` has.
        gate: The other factor of a gated block (SwiGLU, GeGLU), [hidden, width]; None in a plain one.
        inner: Every node between the input and ``down``, in no order.
        residual: Whether the block is on a branch around which its input is carried.
    """

    up: Part
    down: Linear
    activation: str
    input: ir.Value
    gate: Part | None = None
    inner: tuple[ir.Node, ...] = ()
    residual: bool = False

    @property
    def name(self) -> str:
        """The name of its last product."""
        return self.down.node.name or ""

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
    """The blocks and projections of one graph, in its order. Matrix products only: convolutions are none.

    A layer belongs to one block. Of three or more layers in a row those become blocks that hold the most weights
    together, of equals the leading ones; the others are refused.
    """
    result, within = LayerBlocks(), branch_nodes(graph)
    layers = {view.node: view for n in graph if isinstance(view := _matrix(n), Linear)}
    candidates: list[Block] = []
    for view in layers.values():
        found = _block(view, layers, within)
        if isinstance(found, Block):
            candidates.append(found)
        elif found:
            result.refused.append((view.node.name or "", found))
    result.blocks = _apart(candidates)
    taken = {n: b for b in result.blocks for n in _nodes(b)}
    for other in [b for b in candidates if b not in result.blocks]:
        keeper = next(taken[n] for n in _nodes(other) if n in taken)
        result.refused.append((other.name, f"it shares a layer with the block that ends in {keeper.name!r}"))
    result.projections = [Projection(v) for n, v in layers.items() if n not in taken and n in within]
    return result


def _matrix(node: ir.Node) -> Linear | str:
    return linear(node) if node.op_type in ("MatMul", "Gemm") else "no matrix product"


def _nodes(block: Block) -> set[ir.Node]:
    return {v.node for v in (block.up, block.down, block.gate) if v is not None}


def _weights(block: Block) -> int:
    return sum(v.shape[0] * v.shape[1] for v in (block.up, block.down, block.gate) if v is not None)


def _apart(candidates: list[Block]) -> list[Block]:
    """Those that share no layer and hold the most weights together.

    A block begins with the last layer of at most one other (nothing but it reads that layer), so they form chains.
    """
    ends = {b.down.node: b for b in candidates}
    best: dict[Block | None, tuple[int, tuple[Block, ...]]] = {None: (0, ())}  # of each chain up to a block
    open_ = set(candidates)
    for block in candidates:
        before = next((ends[n] for n in _nodes(block) - {block.down.node} if n in ends), None)
        farther = None
        if before is not None:
            farther = next((ends[n] for n in _nodes(before) - {before.down.node} if n in ends), None)
            open_.discard(before)
        weight, others = best[farther]
        best[block] = max(best[before], (weight + _weights(block), (*others, block)), key=lambda b: b[0])
    chosen = {b for last in open_ for b in best[last][1]}
    return [b for b in candidates if b in chosen]


def _block(down: Linear, layers: dict[ir.Node, Linear], within: set[ir.Node]) -> Block | str:
    """The block that ends in ``down``; why it is none, or "" where it does not look like one."""
    by_output = {view.output: view for view in layers.values()}
    hidden, inner = through(down.input)
    start = _plain(hidden, by_output) or _gated(hidden, by_output)
    if start is None:
        return ""
    found, first, between = start
    inner += (*between, *found.nodes, *(n for v in first for n in v.nodes))
    parts = [v.part for v in first]
    if why := _refusal(parts, down, inner):
        return why
    source = _source(parts, down, inner)
    if source is None:
        return "its tokens are arranged in another way behind it than before it"
    gate = parts[1] if len(parts) > 1 else None
    return Block(parts[0], down, found.kind, source, gate, inner, residual=down.node in within)


def _refusal(first: list[Part], down: Linear, inner: tuple[ir.Node, ...]) -> str:
    views: list[Part] = [*first, down]
    if len({through(v.input)[0] for v in first}) > 1:
        return "its two first products read different values"
    if len({v.shape for v in first}) > 1:
        return "its two first products are of different sizes"
    if down.shape[1] != first[0].shape[0]:
        return "the products do not fit one another"
    if any(v.weight_value is not v.node.inputs[1] for v in views):
        return "its weights are quantized"
    if len({v.weight_value.dtype for v in views}) > 1:
        return "its weights are of different types"
    return _read_elsewhere(inner, down)


def _read_elsewhere(inner: tuple[ir.Node, ...], down: Linear) -> str:
    inside = {*inner, down.node}
    for node in inner:
        for value in node.outputs:
            if value.is_graph_output():
                return f"its inner value {value.name!r} is an output of the graph"
            if any(u.node not in inside for u in value.uses()):
                return f"its inner value {value.name!r} is read elsewhere too"
    return ""


def _source(first: list[Part], down: Linear, inner: tuple[ir.Node, ...]) -> ir.Value | None:
    """What the first products read, as it is or before it was reshaped, with the leading axes of what comes out."""
    wanted = dims(down.output)
    for value in (first[0].input, through(first[0].input)[0]):
        shape = dims(value)
        if not any(moves(n, Way.VIEW) and n.op_type != "Identity" for n in inner):
            return value
        if wanted is None or shape is None or len(shape) != len(wanted):
            continue
        if len(shape) == 2 or (shape[:-1] == wanted[:-1] and None not in shape[:-1]):
            return value  # all rows are one axis, or all axes are the same
    return None


_Start: TypeAlias = tuple[Activated, tuple[Reached, ...], tuple[ir.Node, ...]]


def _plain(hidden: ir.Value, layers: dict[ir.Value, Linear]) -> _Start | None:
    found = activated(hidden)
    up = reached(found.source, layers) if found is not None else None
    return None if found is None or up is None else (found, (up,), ())


def _gated(hidden: ir.Value, layers: dict[ir.Value, Linear]) -> _Start | None:
    product = hidden.producer()
    if product is None or product.op_type != "Mul" or product.domain:
        return None
    a, b = product.inputs
    for left, right in ((a, b), (b, a)):
        found = activated(through(left)[0]) if left is not None else None
        up = reached(found.source, layers) if found is not None else None
        own = found is not None and right is not None and through(found.source)[0] is through(right)[0]
        gate = reached(right, layers) if right is not None and not own else None
        if found is not None and up is not None and gate is not None:
            return found, (up, gate), (product, *(through(left)[1] if left is not None else ()))
    return None


def names(found: Iterable[Found]) -> list[str]:
    """Their names in order."""
    return [f.name for f in found]
