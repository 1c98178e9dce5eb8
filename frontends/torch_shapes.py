"""dynamic_shapes as users write them, axis by axis of what the module is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from graphpress.frontends import torch_results


def of_leaves(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any], shapes: Any) -> list[dict[int, str]]:
    """For each leaf of the arguments, in order, the names of the axes that have one.

    ``shapes`` is for all arguments, by position or by name; None, a number or a hint gives no name.
    """
    names = torch_results.positional(module)
    found: list[dict[int, str]] = []
    for i, (name, value) in enumerate([*((None, a) for a in args), *kwargs.items()]):
        key = name if name is not None else names[min(i, len(names) - 1)] if names else ""
        if isinstance(shapes, Mapping):
            own = shapes.get(key)
        else:
            own = shapes[i] if isinstance(shapes, Sequence) and i < len(shapes) else None
        found += _walk(value, own)
    return found


def _walk(value: Any, shape: Any) -> Iterator[dict[int, str]]:
    from torch.utils import _pytree as pytree

    parts, _ = pytree.tree_flatten(value, is_leaf=lambda x: x is not value)
    if len(parts) == 1 and parts[0] is value:
        axes = shape.items() if isinstance(shape, Mapping) else enumerate(shape) if isinstance(shape, Sequence) else ()
        yield {axis: name for axis, dim in axes if (name := _name(dim)) is not None}
        return
    own = list(value) if isinstance(value, Mapping) else range(len(parts))
    for key, part in zip(own, parts, strict=False):
        yield from _walk(part, _part(shape, key))


def _part(shape: Any, key: Any) -> Any:
    """What is said of one part of a container: by its name, or by its place."""
    if isinstance(shape, Mapping):
        return shape.get(key)
    return shape[key] if isinstance(shape, Sequence) and isinstance(key, int) and key < len(shape) else None


def _name(dim: Any) -> str | None:
    """What a dimension is called; derived ones are computed from others."""
    if isinstance(dim, str):
        return dim
    return dim.__name__ if hasattr(dim, "__name__") and not hasattr(dim, "root") else None


def of_inputs(
    model: ir.Model, program: Any, axes: Sequence[dict[int, str]]
) -> Iterator[tuple[ir.Value, dict[int, str]]]:
    """The inputs of a graph with the names of their axes; nothing where the arguments are not its inputs one by one."""
    given = [s.arg for s in program.graph_signature.input_specs if s.kind.name == "USER_INPUT"]
    if len(given) != len(axes):
        return
    tensors = [dims for arg, dims in zip(given, axes, strict=True) if type(arg).__name__ != "ConstantArgument"]
    if len(tensors) == len(model.graph.inputs):
        yield from zip(model.graph.inputs, tensors, strict=True)
