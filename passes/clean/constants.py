"""What most clean passes look at: nodes outside functions, and operands that were attributes in older opsets."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from graphpress.graph import edit


def graph_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Nodes of the main graph and of all bodies outside functions: a function has no place for initializers."""
    pending: list[ir.Graph] = [model.graph]
    while pending:
        for node in list(pending.pop(0)):
            yield node
            pending.extend(edit.subgraphs(node))


def ints(node: ir.Node, slot: int, attribute: str = "") -> list[int] | None:
    """The constant integers at input ``slot``, or those of the attribute of that name; None if there are none."""
    value = node.inputs[slot] if slot < len(node.inputs) else None
    if value is not None:
        array = edit.constant(value)
        return None if array is None else [int(v) for v in array.ravel()]
    given = node.attributes.get(attribute)
    return None if given is None or given.is_ref() else [int(v) for v in given.as_ints()]


def number(node: ir.Node, slot: int, attribute: str = "") -> float | None:
    """The constant scalar at input ``slot``, or the attribute of that name; None if there is none."""
    value = node.inputs[slot] if slot < len(node.inputs) else None
    if value is not None:
        tensor = edit.constant_tensor(value)
        return None if tensor is None or tensor.size != 1 else float(tensor.numpy().ravel()[0])
    given = node.attributes.get(attribute)
    return None if given is None or given.is_ref() else float(given.as_float())


def static(shape: ir.ShapeProtocol) -> tuple[int, ...]:
    """The dimensions of a shape that is known to be static."""
    dims = [d for d in shape if isinstance(d, int)]
    assert len(dims) == len(shape)
    return tuple(dims)


def absent(node: ir.Node, slot: int) -> bool:
    """Whether the optional input ``slot`` is left out."""
    return slot >= len(node.inputs) or node.inputs[slot] is None
