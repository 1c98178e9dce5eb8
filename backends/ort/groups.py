"""Whether ONNX Runtime will make one integer kernel of a node with its Q/DQ neighbours, and which rule stops it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphpress.backends import canonical
from graphpress.capability import Capability
from graphpress.graph import edit
from graphpress.graph.grid import grid_of, is_quantize
from graphpress.target import Target


def static_violation(node: ir.Node, target: Target) -> str | None:
    """Why ``node`` does not run on a static integer kernel, or None if it will.

    The rules are those of ONNX Runtime's QDQ selectors (see the audit for what it did in the end).
    """
    found = target.find(node.op_type, "static") if node.domain == "" else ()
    if not found:
        return f"no integer kernel for {node.op_type} on {target.provider}"
    broken = [_violation(node, c) for c in found]
    return None if None in broken else broken[0]


def matching(node: ir.Node, target: Target) -> list[Capability]:
    """The static capabilities whose conditions on the node alone hold."""
    return [c for c in target.find(node.op_type, "static") if c.unmet(node) is None]


def _violation(node: ir.Node, c: Capability) -> str | None:
    if why := c.unmet(node):
        return why
    slots = c.activation_slots or tuple(range(len(node.inputs)))
    for slot in (*slots, *c.weight_slots):
        if why := _input(node, slot, c):
            return why
    if c.output == "none" or (c.output == "optional" and not any(quantizers(v) for v in node.outputs)):
        return None
    return output_violation(node, c)


def _input(node: ir.Node, slot: int, c: Capability) -> str | None:
    value = node.inputs[slot] if slot < len(node.inputs) else None
    w, x = canonical.weight(value), canonical.activation(value)
    if w is not None:
        if slot in c.weight_slots and w.block:
            return "weights have a scale for each group, the static kernel takes one for each channel"
        return None
    if x is None:
        return None if canonical.restored(node, value) else f"input {slot} is float"
    if x.kind != "static":
        return f"input {slot} is quantized at run time"
    known = x.codes.dtype.name.lower() if x.codes.dtype is not None else ""
    return (
        None if not known or known in c.activation else f"input {slot} is {known}, the kernel takes {c.activation[0]}"
    )


def quantizers(value: ir.Value) -> list[ir.Node]:
    """The QuantizeLinear nodes that read ``value``, also behind a Relu or Clip that their range makes redundant."""
    found = []
    for use in value.uses():
        if use.idx == 0 and is_quantize(use.node):
            found.append(use.node)
        elif use.idx == 0 and use.node.op_type in ("Relu", "Clip") and not use.node.outputs[0].is_graph_output():
            inner = [u.node for u in use.node.outputs[0].uses()]
            if len(inner) == 1 and is_quantize(inner[0]) and _redundant(use.node, inner[0]):
                found.append(inner[0])
    return found


def _redundant(clip: ir.Node, q: ir.Node) -> bool:
    """Whether the codes of ``q`` end where ``clip`` clips."""
    grid = grid_of(q)
    if grid is None or grid.scale.size != 1 or grid.values[1] is None:
        return False
    low, high = ((c - int(grid.zero.item())) * float(grid.scale.item()) for c in grid.limits)
    bounds = [edit.constant(v) for v in (*clip.inputs[1:], None, None)[:2]]
    floor = 0.0 if clip.op_type == "Relu" else -np.inf if bounds[0] is None else float(bounds[0].item())
    ceiling = np.inf if bounds[1] is None else float(bounds[1].item())
    return floor <= low and high <= ceiling


def output_violation(node: ir.Node, c: Capability) -> str | None:
    """The rule on outputs that is broken: every reader of every output is one QuantizeLinear."""
    for value in node.outputs:
        readers, found = len(value.uses()), quantizers(value)
        if value.is_graph_output():
            return "its output is a graph output"
        if not found:
            return "its output is not quantized (no trailing Q)"
        if readers != 1:
            return f"its output has {readers} readers, {readers - len(found)} of them no QuantizeLinear"
        if c.output == "same" and not _same_parameters(node.inputs[0], found[0]):
            return "its output has another scale or zero point than its input"
    return None


def _same_parameters(value: ir.Value | None, q: ir.Node) -> bool:
    dq = value.producer() if value is not None else None
    if dq is None:
        return False
    pairs = zip(dq.inputs[1:3], q.inputs[1:3], strict=False)
    return all(a is b or _equal(a, b) for a, b in pairs)


def _equal(a: ir.Value | None, b: ir.Value | None) -> bool:
    x, y = edit.constant(a), edit.constant(b)
    return x is not None and y is not None and x.shape == y.shape and bool((x == y).all())
