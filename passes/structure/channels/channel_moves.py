"""What data movement does with channels. A handler gives the reason for a refusal."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.passes.structure.channels.channel_ops import beside
from graphpress.passes.structure.channels.channel_reshape import reshape, slim
from graphpress.passes.structure.channels.channels import Flow, shape_of, varying
from graphpress.passes.structure.layers import linear as layers


def resize(flow: Flow, node: ir.Node) -> str:
    """Reshape, Flatten, Squeeze, Unsqueeze."""
    atoms, before, after = flow.of(node), shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if atoms is None:
        return ""
    if before is None or after is None:
        return "its shape is not known"
    made = reshape(atoms, before, after)
    if made is None:
        return "it mixes channels with an axis of unknown size"
    flow.give(node, made)
    return ""


def transpose(flow: Flow, node: ir.Node) -> str:
    """Transpose."""
    atoms = flow.of(node)
    if atoms is not None:
        flow.give(node, atoms.transpose(edit.attribute(node, "perm", None)))
    return ""


def expand(flow: Flow, node: ir.Node) -> str:
    """Expand."""
    atoms, after = flow.of(node), shape_of(node.outputs[0])
    if atoms is None:
        return _expanded_constant(flow, node)
    if after is None:
        return "its shape is not known"
    flow.give(node, atoms.reshape([1] * (len(after) - atoms.ndim) + list(atoms.shape)))
    return ""


def _expanded_constant(flow: Flow, node: ir.Node) -> str:
    """A constant such as a class token: its last axis makes channels."""
    tensor, after = edit.constant_tensor(node.inputs[0]), shape_of(node.outputs[0])
    if tensor is None or after is None or not len(tensor.shape) or tensor.shape.numpy()[-1] == 1:
        return ""
    size = tensor.shape.numpy()[-1]
    made = flow.channels.fresh([1] * (len(after) - 1) + [size])
    flow.port(node, 0, made.reshape([1] * (len(tensor.shape) - 1) + [size]))
    flow.give(node, made)
    return ""


def concat(flow: Flow, node: ir.Node) -> str:
    """Concat, of channels or beside them."""
    parts = [flow.of(node, i) for i in range(len(node.inputs))]
    tracked = [p for p in parts if p is not None]
    if not tracked:
        return ""
    rank = tracked[0].ndim
    axis = int(edit.attribute(node, "axis")) % rank
    if all(p.shape[axis] == 1 for p in tracked):
        return _stacked(flow, node, tracked)
    if len(tracked) != len(parts):
        return "it joins channels with something else"
    wide = []
    for part, value in zip(tracked, node.inputs, strict=True):
        size = (shape_of(value) or ["?"] * rank)[axis]
        if not isinstance(size, int) or [a for a in varying(part) if a != axis]:
            return "it joins channels along an axis of unknown size"
        wide.append(np.broadcast_to(part, [size if a == axis else n for a, n in enumerate(part.shape)]))
    flow.give(node, np.concatenate(wide, axis))
    return ""


def _stacked(flow: Flow, node: ir.Node, tracked: list[np.ndarray]) -> str:
    """Joined along another axis: equal places hold one channel."""
    whole = tracked[0]
    for other in tracked[1:]:
        if other.shape != whole.shape:
            return "it joins channels of different axes"
        flow.channels.join(whole, other)
    for slot, value in enumerate(node.inputs):
        if value is not None and value not in flow.atoms:
            if shape_of(value) is None:
                return "the shape of an operand is not known"
            beside(flow, node, slot, whole)
    flow.give(node, whole)
    return ""


def split(flow: Flow, node: ir.Node) -> str:
    """Split."""
    atoms = flow.of(node)
    if atoms is None:
        return ""
    axis, start = int(edit.attribute(node, "axis", 0)) % atoms.ndim, 0
    for out in node.outputs:
        if atoms.shape[axis] == 1:
            part = atoms
        else:
            size = (shape_of(out) or ["?"] * atoms.ndim)[axis]
            if not isinstance(size, int):
                return "the size of a part is not known"
            part, start = atoms.take(range(start, start + size), axis), start + size
        if part.size > 1:
            flow.atoms[out] = slim(part)
    return ""


def cut(flow: Flow, node: ir.Node) -> str:
    """Slice."""
    atoms = flow.of(node)
    if atoms is None:
        return ""
    given = [edit.constant(v) if v is not None else None for v in node.inputs[1:]]
    axes = given[2] if len(given) > 2 and given[2] is not None else None
    if axes is None:
        return "its axes are not known"
    for i, axis in enumerate(int(a) % atoms.ndim for a in axes):
        if atoms.shape[axis] == 1:
            continue
        if given[0] is None or given[1] is None:
            return "it cuts channels at a place that is computed"
        step = int(given[3][i]) if len(given) > 3 and given[3] is not None else 1
        if step < 1:
            return "it turns channels round"
        atoms = atoms[(slice(None),) * axis + (slice(int(given[0][i]), int(given[1][i]), step),)]
    flow.give(node, atoms)
    return ""


def gather(flow: Flow, node: ir.Node) -> str:
    """Gather: a table makes channels; of a tensor with channels, whatever it picks along another axis."""
    atoms, index = flow.of(node), shape_of(node.inputs[1])
    if flow.of(node, 1) is not None or index is None:
        return "its indices are channels, or of unknown rank"
    axis = int(edit.attribute(node, "axis", 0))
    if atoms is None:
        return _table(flow, node, axis, len(index))
    axis %= atoms.ndim
    if atoms.shape[axis] > 1:
        return "it picks channels by their place"
    shape = [*atoms.shape[:axis], *[1] * len(index), *atoms.shape[axis + 1 :]]
    flow.give(node, atoms.reshape(shape))
    return ""


def _table(flow: Flow, node: ir.Node, axis: int, rank: int) -> str:
    """Rows of a constant table, such as an embedding: its last axis makes channels."""
    tensor = edit.constant_tensor(node.inputs[0])
    if tensor is None or len(tensor.shape) < 2 or axis % len(tensor.shape) == len(tensor.shape) - 1:
        return ""
    size, depth = tensor.shape.numpy()[-1], len(tensor.shape)
    if size > 1 and tensor.dtype in layers.FLOATS:
        made = flow.channels.fresh([1] * (rank + depth - 2) + [size])
        flow.port(node, 0, made.reshape([1] * (depth - 1) + [size]))
        flow.give(node, made)
    return ""


def pad(flow: Flow, node: ir.Node) -> str:
    """Pad. What is added to channels is alike, so it may change places among itself."""
    atoms = flow.of(node)
    if atoms is None:
        return ""
    pads = edit.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if pads is None or (len(node.inputs) > 3 and node.inputs[3] is not None):
        return "its widths are computed, or given for some axes"
    for axis in varying(atoms):
        low, high = int(pads[axis]), int(pads[axis + atoms.ndim])
        if min(low, high) < 0 or ((low or high) and edit.attribute(node, "mode", "constant") != "constant"):
            return "it repeats or cuts channels"
        if low or high:
            ends = [[n if a != axis else w for a, n in enumerate(atoms.shape)] for w in (low, high)]
            atoms = np.concatenate([flow.channels.fresh(ends[0]), atoms, flow.channels.fresh(ends[1])], axis)
    flow.give(node, atoms)
    return ""
