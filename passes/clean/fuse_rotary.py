"""Find rotary position embeddings where they are spelled out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import edit
from graphpress.passes.clean.constants import graph_nodes, ints, number
from graphpress.types import Numerics

_OPSET = 23
_SAME = frozenset({"Cos", "Sin", "Cast", "Identity"})  # what is repeated stays repeated


@dataclass(frozen=True)
class _Rotary:
    """``x * cos + concat(-x[..., half:], x[..., :half]) * sin`` for x [batch, heads, tokens, 2 * half]."""

    x: ir.Value
    cos: ir.Value
    sin: ir.Value


@dataclass(frozen=True)
class FuseRotary(Pass):
    """Replace ``x * cos + rotate_half(x) * sin`` by RotaryEmbedding (opset 23 and later; RoFormer, arXiv:2104.09864).

    RotaryEmbedding takes one half of the angles, so both halves of ``cos`` and of ``sin`` must be known to be equal.
    Where ``x`` was split into heads just before, it is rotated before that: rows then lie side by side in memory.
    """

    name: ClassVar[str] = "fuse-rotary"
    numerics: ClassVar[Numerics] = Numerics.CLOSE

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        angles = _Angles()
        for node in graph_nodes(model):
            found = _rotation(node) if node.op_type == "Add" and node.domain == "" else None
            if found is None:
                continue
            why = _obstacle(model, found)
            if why:
                report.skip(node, why)
                continue
            cos, sin = (angles.of(value, found.x, node) for value in (found.cos, found.sin))
            made = edit.new_node("RotaryEmbedding", [found.x, cos, sin], before=node, origin=node)
            edit.like(made.outputs[0], node.outputs[0])
            inputs = list(node.inputs)
            edit.replace(node.outputs[0], made.outputs[0])
            edit.remove([node])
            edit.remove_unused(inputs)
            _move_before_heads(made, found.x)
            report.changed += 1


def _move_before_heads(rotary: ir.Node, x: ir.Value) -> None:
    """Rotate [batch, tokens, heads * size], if ``x`` was made of that by Reshape and Transpose for ``rotary`` alone."""
    transpose = _sole(x, "Transpose")
    split = _sole(transpose.inputs[0], "Reshape") if transpose is not None else None
    flat = split.inputs[0] if split is not None else None
    if transpose is None or split is None or flat is None or x.shape is None or flat.shape is None:
        return
    batch, heads, tokens, size = x.shape
    width = heads * size if isinstance(heads, int) and isinstance(size, int) else None
    if ints(transpose, 9, "perm") != [0, 2, 1, 3] or list(flat.shape) != [batch, tokens, width]:
        return
    made = edit.new_node(
        "RotaryEmbedding", [flat, *rotary.inputs[1:]], {"num_heads": heads}, before=rotary, name=rotary.name or ""
    )
    made.metadata_props.update(rotary.metadata_props)
    value = edit.like(made.outputs[0], flat)
    for old in (split, transpose):
        made = edit.new_node(old.op_type, [value, *old.inputs[1:]], old.attributes, before=rotary, origin=old)
        value = edit.like(made.outputs[0], old.outputs[0])
    edit.replace(rotary.outputs[0], value)
    edit.remove([rotary, transpose, split])


@dataclass
class _Angles:
    """Halves of cos and sin as [batch, tokens, half], made once for all tensors that one graph turns by them."""

    _made: dict[tuple[object, ...], ir.Value] = field(default_factory=dict)

    def of(self, angle: ir.Value, x: ir.Value, site: ir.Node) -> ir.Value:
        assert x.shape is not None and angle.shape is not None
        batch = x.shape[0]
        known = isinstance(batch, int) or batch.value is not None
        key = (id(site.graph), angle, str(batch) if known else x)
        if key not in self._made:
            self._made[key] = _half(angle, x, site)
        return self._made[key]


def _half(angle: ir.Value, x: ir.Value, site: ir.Node) -> ir.Value:
    assert isinstance(site.graph, ir.Graph) and x.shape is not None and angle.shape is not None
    graph, rank, width = site.graph, len(angle.shape), x.shape[-1]
    assert isinstance(width, int)

    def numbers(*values: int) -> ir.Value:
        return edit.add_const(graph, np.array(values, np.int64), "rotary_sizes")

    def then(op_type: str, *inputs: ir.Value) -> ir.Value:
        made = edit.new_node(op_type, inputs, before=site, origin=site).outputs[0]
        made.type = angle.type
        return made

    value = then("Slice", angle, numbers(0), numbers(width // 2), numbers(rank - 1))
    if rank != 3:
        value = then("Unsqueeze" if rank == 2 else "Squeeze", value, numbers(0 if rank == 2 else 1))
    if angle.shape[0] != x.shape[0] if rank == 4 else x.shape[0] != 1:
        batch = edit.new_node("Shape", [_source(x)], {"start": 0, "end": 1}, before=site, origin=site).outputs[0]
        sizes = edit.new_node("Concat", [batch, numbers(1, 1)], {"axis": 0}, before=site, origin=site).outputs[0]
        batch.type = sizes.type = ir.TensorType(ir.DataType.INT64)
        value = then("Expand", value, sizes)
    value.shape = ir.Shape([x.shape[0], x.shape[2], width // 2])
    return value


def _source(x: ir.Value) -> ir.Value:
    """What ``x`` is a view of, if its batch is the same: reading that leaves ``x`` to the rotation alone."""
    node = x.producer()
    source = node.inputs[0] if node is not None and node.op_type in ("Transpose", "Reshape") else None
    if source is None or source.shape is None or x.shape is None or source.shape[0] != x.shape[0]:
        return x
    return _source(source)


def _rotation(add: ir.Node) -> _Rotary | None:
    for slot in (0, 1):
        turned, plain = _sole(add.inputs[slot], "Mul"), _sole(add.inputs[1 - slot], "Mul")
        if turned is None or plain is None:
            continue
        for half_slot in (0, 1):
            x = _rotated_half(turned.inputs[half_slot])
            sin = turned.inputs[1 - half_slot]
            cos = next((plain.inputs[1 - i] for i in (0, 1) if x is not None and plain.inputs[i] is x), None)
            if x is not None and sin is not None and cos is not None:
                return _Rotary(x, cos, sin)
    return None


def _rotated_half(value: ir.Value | None) -> ir.Value | None:
    """x if ``value`` is concat(-x[..., half:], x[..., :half])."""
    concat = _sole(value, "Concat")
    if concat is None or len(concat.inputs) != 2 or not _last(concat.attributes.get_int("axis", 0), concat.outputs[0]):
        return None
    negated = _sole(concat.inputs[0], "Neg")
    low, high = _part(concat.inputs[1]), _part(negated.inputs[0]) if negated is not None else None
    if low is None or high is None or low[0] is not high[0]:
        return None
    x = low[0]
    width = x.shape[-1] if x.shape is not None and len(x.shape) == 4 else None
    if not isinstance(width, int) or width % 2:
        return None
    return x if low[1:] == (0, width // 2) and high[1:] == (width // 2, width) else None


def _part(value: ir.Value | None) -> tuple[ir.Value, int, int] | None:
    """(x, first, end) if ``value`` is x[..., first:end]."""
    node = value.producer() if value is not None else None
    x = node.inputs[0] if node is not None and node.inputs else None
    width = x.shape[-1] if x is not None and x.shape is not None and len(x.shape) > 0 else None
    if node is None or x is None or node.domain != "" or not isinstance(width, int):
        return None
    if node.op_type == "Slice":
        start, end, axes = (ints(node, i) for i in range(1, 4))
        steps = ints(node, 4) if len(node.inputs) > 4 else [1]
        if start is None or end is None or axes is None or len(axes) != 1 or steps != [1] or not _last(axes[0], x):
            return None
        first, last, _ = slice(start[0], end[0]).indices(width)
        return x, first, last
    if node.op_type == "Split" and len(node.outputs) == 2 and _last(node.attributes.get_int("axis", 0), x):
        sizes = ints(node, 1) if len(node.inputs) > 1 else [width // 2, width // 2]
        if sizes == [width // 2, width // 2]:
            return (x, 0, width // 2) if value is node.outputs[0] else (x, width // 2, width)
    return None


def _obstacle(model: ir.Model, found: _Rotary) -> str:
    """Why the rotation cannot be one RotaryEmbedding, or ""."""
    if edit.opset(model) < _OPSET:
        return f"RotaryEmbedding needs opset {_OPSET}"
    if found.x.dtype != ir.DataType.FLOAT:
        return "only float32 is rotated by a kernel everywhere"
    for angle in (found.cos, found.sin):
        if not _fits(angle, found.x):
            return "cos and sin are not [tokens, size], [1, tokens, size] or [batch, 1, tokens, size]"
        if not _repeats(angle):
            return "the halves of cos or sin are not known to be equal"
    return ""


def _fits(angle: ir.Value, x: ir.Value) -> bool:
    shape, of_x = angle.shape, x.shape
    if shape is None or of_x is None or len(shape) not in (2, 3, 4):
        return False
    tokens = of_x[2]
    named = isinstance(tokens, int) or tokens.value is not None
    leading = {2: True, 3: shape[0] == 1, 4: shape[0] in (1, of_x[0]) and len(shape) == 4 and shape[1] == 1}[len(shape)]
    return named and leading and shape[-2] == tokens and shape[-1] == of_x[3]


def _repeats(value: ir.Value | None) -> bool:
    """Whether the two halves of the last axis are known to be equal."""
    array = edit.constant(value)
    if array is not None:
        half = array.shape[-1] // 2 if array.ndim else 0
        return half > 0 and np.array_equal(array[..., :half], array[..., half:])
    node = value.producer() if value is not None else None
    if node is None or node.domain != "" or value is None or value.shape is None:
        return False
    if node.op_type == "Concat":
        twice = len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
        return twice and _last(node.attributes.get_int("axis", 0), value)
    if node.op_type == "Mul":
        return any(number(node, 1 - slot) is not None and _repeats(node.inputs[slot]) for slot in (0, 1))
    return (node.op_type in _SAME or _keeps_last(node, value)) and _repeats(node.inputs[0])


def _keeps_last(node: ir.Node, out: ir.Value) -> bool:
    """Whether the last axis of ``out`` is, unchanged, that of the node's first input."""
    x = node.inputs[0] if node.inputs else None
    if x is None or x.shape is None:
        return False
    if node.op_type == "Gather":
        return not _last(node.attributes.get_int("axis", 0), x)
    axes = ints(node, {"Slice": 3, "Unsqueeze": 1}.get(node.op_type, 9))
    of = x if node.op_type == "Slice" else out
    return axes is not None and not any(_last(a, of) for a in axes)


def _last(axis: int, of: ir.Value) -> bool:
    return axis == -1 or (of.shape is not None and axis == len(of.shape) - 1)


def _sole(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The maker of a value that has one reader only, if it is of that type."""
    node = value.producer() if value is not None else None
    if value is None or node is None or node.domain != "" or len(value.uses()) != 1 or value.is_graph_output():
        return None
    return node if node.op_type == op_type else None
