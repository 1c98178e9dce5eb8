"""What arithmetic does with channels: makes, reads, joins and scales them. A handler gives the reason for a refusal."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.passes.structure.channels.channels import Flow, shape_of, varying
from graphpress.passes.structure.layers import linear as layers


def unary(flow: Flow, node: ir.Node) -> str:
    """One channel in, the same out."""
    flow.give(node, flow.of(node))
    return ""


def elementwise(flow: Flow, node: ir.Node) -> str:
    """Equal places become one channel; constants follow."""
    tracked = [a for i in range(len(node.inputs)) if (a := flow.of(node, i)) is not None]
    if not tracked:
        return ""
    rank = max(a.ndim for a in tracked)
    shapes = [shape_of(v) for v in node.inputs if v is not None]
    if any(s is None for s in shapes):
        return "the shape of an operand is not known"
    rank = max(rank, *(len(s) for s in shapes if s is not None))
    tracked = [a.reshape([1] * (rank - a.ndim) + list(a.shape)) for a in tracked]
    whole = tracked[0]
    for other in tracked[1:]:
        if varying(whole) != varying(other):
            return "it joins channels of different axes"
        flow.channels.join(whole, other)
    for slot, value in enumerate(node.inputs):
        if value is not None and value not in flow.atoms:
            beside(flow, node, slot, whole)
    flow.give(node, whole)
    return ""


def beside(flow: Flow, node: ir.Node, slot: int, atoms: np.ndarray) -> None:
    """An operand without channels of its own: a constant that can follow, or something that keeps them in place."""
    value, shape = node.inputs[slot], shape_of(node.inputs[slot])
    assert shape is not None
    offset = atoms.ndim - len(shape)
    axes = [a for a in varying(atoms) if a >= offset and shape[a - offset] != 1]
    if not axes:
        return
    if edit.is_constant(value) and axes == varying(atoms):
        flow.port(node, slot, atoms.reshape(atoms.shape[offset:]))
    else:
        flow.apart(atoms, axes)


def linear(flow: Flow, node: ir.Node) -> str:
    """MatMul, Gemm, Conv: one set of channels is read, another made."""
    view = layers.linear(node)
    if isinstance(view, str):
        return _computed_product(flow, node) if node.op_type == "MatMul" else view
    out, shape = node.outputs[0], view.shape
    if node.op_type == "Conv":
        return _conv(flow, node, view)
    rank = len(node.inputs[0].shape or ()) if node.inputs[0] is not None else 0
    if not rank:
        return "the rank of its input is not known"
    wide = [1] * (rank - 1)
    atoms = flow.of(node)
    if atoms is not None:
        if varying(atoms) != [rank - 1]:
            return "the channels stand along another axis"
        axis = 0 if view.transposed else 1
        flow.port(node, 1, atoms.reshape([-1, 1] if axis == 0 else [1, -1]), reads=True)
    if shape[0] > 1 and out.uses():
        made = flow.channels.fresh([*wide, shape[0]])
        flow.port(node, 1, made.reshape([1, -1] if view.transposed else [-1, 1]))
        if node.op_type == "Gemm":
            _bias(flow, node, made.reshape(-1))
        flow.give(node, made)
    return ""


def _bias(flow: Flow, node: ir.Node, made: np.ndarray) -> None:
    tensor = edit.constant_tensor(node.inputs[2]) if len(node.inputs) > 2 else None
    if tensor is not None and tensor.size > 1:
        rank = len(tensor.shape)
        flow.port(node, 2, made.reshape([1] * (rank - 1) + [-1]))


def _conv(flow: Flow, node: ir.Node, view: layers.Linear) -> str:
    atoms, (out, per_group, *kernel), groups = flow.of(node), view.shape, view.groups
    if atoms is not None and varying(atoms) != [1]:
        return "the channels stand along another axis"
    depthwise = groups > 1 and per_group == 1
    ones = [1] * len(kernel)
    if depthwise and atoms is not None:
        made = np.repeat(atoms, out // groups, axis=1)
    else:
        made = flow.channels.fresh([1, out, *ones])
        if groups > 1:
            flow.channels.stand(made, np.repeat(np.arange(groups), out // groups).reshape(made.shape))
            if atoms is not None:
                flow.hold(node, f"Conv {node.name!r} reads them in {groups} groups")
        elif atoms is not None:
            flow.port(node, 1, atoms.reshape([1, -1, *ones]), reads=True)
    if out > 1:
        flow.port(node, 1, made.reshape([-1, 1, *ones]))
        _bias(flow, node, made.reshape(-1))
        flow.give(node, made)
    return ""


def _computed_product(flow: Flow, node: ir.Node) -> str:
    """Attention weights times values: the channels of the second pass, apart for each matrix of the first."""
    left, right = flow.of(node, 0), flow.of(node, 1)
    if left is None and right is None:
        return ""
    shape = shape_of(node.inputs[0])
    if left is not None or right is None or shape is None or right.ndim < 2 or right.shape[-2] > 1:
        return "it multiplies computed channels"
    rank = max(len(shape), right.ndim)
    right = right.reshape([1] * (rank - right.ndim) + list(right.shape))
    offset = rank - len(shape)
    batch = [a for a in varying(right) if a < rank - 2 and a >= offset and shape[a - offset] != 1]
    flow.apart(right, batch)
    flow.give(node, right)
    return ""


def attention(flow: Flow, node: ir.Node) -> str:
    """Values leave attention in their order, head by head; queries and keys stay."""
    value, more = flow.of(node, 2), any(v is not None and v in flow.atoms for v in node.inputs[3:])
    for slot in (0, 1):
        if (atoms := flow.of(node, slot)) is not None:
            flow.channels.hold(atoms, f"Attention {node.name!r} compares queries and keys by their place")
    query, shape = shape_of(node.inputs[0]), shape_of(node.inputs[2])
    if value is None:
        return ""
    if more or any(o.uses() or o.is_graph_output() for o in node.outputs[1:]) or query is None or shape is None:
        return "it keeps keys and values"
    if value.ndim != 4 or varying(value) not in ([1, 3], [3]) or not isinstance(query[1], int):
        return "its values are not laid out as batch, heads, tokens, channels"
    heads = value.shape[1]
    flow.apart(value, [1])
    flow.give(node, np.repeat(value, query[1] // heads, axis=1) if heads > 1 else value)
    return ""


def batchnorm(flow: Flow, node: ir.Node) -> str:
    """Constants for each channel."""
    atoms = flow.of(node)
    if atoms is None:
        return ""
    if varying(atoms) != [1] or not all(edit.is_constant(v) for v in node.inputs[1:]):
        return "its statistics are computed, or are of another axis"
    for slot in range(1, len(node.inputs)):
        flow.port(node, slot, atoms.reshape(-1))
    flow.give(node, atoms)
    return ""


def norm(flow: Flow, node: ir.Node) -> str:
    """LayerNormalization, RMSNormalization: a sum over channels, and gains."""
    atoms = flow.of(node)
    if atoms is None:
        return ""
    axis = int(edit.attribute(node, "axis", -1)) % atoms.ndim
    inside = [a for a in varying(atoms) if a >= axis]
    for slot, value in enumerate(node.inputs[1:], 1):
        if value is None:
            continue
        if not edit.is_constant(value) or shape_of(value) is None or len(shape_of(value) or ()) > atoms.ndim:
            return "its gain is computed"
        if inside == varying(atoms):
            beside(flow, node, slot, atoms)
    flow.apart(atoms, [a for a in varying(atoms) if a < axis])
    if inside != varying(atoms):
        flow.apart(atoms, inside)
    flow.give(node, atoms)
    return ""


def along(flow: Flow, node: ir.Node) -> str:
    """Softmax and the like: any order within what is summed."""
    atoms = flow.of(node)
    if atoms is None:
        return ""
    version = node.graph.opset_imports.get("", 1) if isinstance(node.graph, ir.Graph) else 1
    if version < 13 and node.op_type != "LpNormalization":
        return "before opset 13 it runs along several axes"
    axis = int(edit.attribute(node, "axis", -1)) % atoms.ndim
    if axis in varying(atoms):
        flow.apart(atoms, [a for a in varying(atoms) if a != axis])
    flow.give(node, atoms)
    return ""


def pool(flow: Flow, node: ir.Node) -> str:
    """Pools and Resize, in space only."""
    atoms = flow.of(node)
    if atoms is None:
        return ""
    before, after = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if varying(atoms) != [1] or before is None or after is None or before[1] != after[1]:
        return "it runs along channels"
    if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        return "its indices are read"
    flow.give(node, atoms)
    return ""


def reduce(flow: Flow, node: ir.Node) -> str:
    """A sum or the like over all channels gives the same in any order."""
    atoms = flow.of(node)
    if atoms is None:
        return ""
    given = edit.constant(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if given is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        return "its axes are computed"
    listed = edit.attribute(node, "axes", None) if given is None else given.tolist()
    axes = sorted(int(a) % atoms.ndim for a in listed or range(atoms.ndim))
    over = [a for a in varying(atoms) if a in axes]
    if over and over != varying(atoms):
        return "it reduces a part of the channels"
    if not over:
        kept = atoms if edit.attribute(node, "keepdims", 1) else atoms.squeeze(tuple(axes))
        flow.give(node, kept)
    return ""
