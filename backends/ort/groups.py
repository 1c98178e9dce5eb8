"""Whether ONNX Runtime will make one integer kernel of a node with its Q/DQ neighbours, and which rule stops it."""

from __future__ import annotations

import onnx_ir as ir

from graphpress import edit
from graphpress.backends.ort import canonical
from graphpress.target import Capability, Target, condition


def static_violation(node: ir.Node, target: Target) -> str | None:
    """Why ``node`` does not run on a static integer kernel, or None if it will.

    The rules are those of ONNX Runtime's QDQ selectors (see the audit for what it did in the end).
    """
    found = target.find(node.op_type, "static") if node.domain == "" else ()
    if not found:
        return f"no integer kernel for {node.op_type} on {target.provider}"
    broken = [_violation(node, c) for c in found]
    return None if None in broken else broken[0]


def _violation(node: ir.Node, c: Capability) -> str | None:
    for text in c.conditions:
        if why := condition(text, node, {}):
            return why
    slots = c.activation_slots or tuple(range(len(node.inputs)))
    for slot in (*slots, *c.weight_slots):
        if why := _input(node, slot, c):
            return why
    if c.output == "none" or (c.output == "optional" and not _some_quantized(node)):
        return None
    return output_violation(node, c)


def _input(node: ir.Node, slot: int, c: Capability) -> str | None:
    value = node.inputs[slot] if slot < len(node.inputs) else None
    w, x = canonical.weight(value), canonical.activation(value)
    if w is not None:
        if slot in c.weight_slots and w.block:
            return "weights have a scale for each group, the static kernel takes one for each channel"
        return None if slot not in c.weight_slots or w.symmetric else "weights have a zero point"
    if x is None:
        return f"input {slot} is float"
    if x.kind != "static":
        return f"input {slot} is quantized at run time"
    known = x.codes.dtype.name.lower() if x.codes.dtype is not None else ""
    return (
        None if not known or known in c.activation else f"input {slot} is {known}, the kernel takes {c.activation[0]}"
    )


def _quantizers(value: ir.Value) -> list[ir.Node]:
    return [u.node for u in value.uses() if u.node.op_type == "QuantizeLinear" and u.idx == 0]


def _some_quantized(node: ir.Node) -> bool:
    return any(_quantizers(v) for v in node.outputs)


def output_violation(node: ir.Node, c: Capability) -> str | None:
    """The rule on outputs that is broken: every reader of every output is one QuantizeLinear."""
    for value in node.outputs:
        readers, quantizers = len(value.uses()), _quantizers(value)
        if value.is_graph_output():
            return "its output is a graph output"
        if not quantizers:
            return "its output is not quantized (no trailing Q)"
        if readers != 1:
            return f"its output has {readers} readers and {readers - len(quantizers)} of them is no QuantizeLinear"
        if c.output == "same" and not _same_parameters(node.inputs[0], quantizers[0]):
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
