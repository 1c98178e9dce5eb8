"""What torch's exporter drops or fixes without a word, found in what it made, and refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from graphpress.errors import Unsupported
from graphpress.frontends import torch_shapes

_RECURRENT = ("aten.lstm.", "aten.gru.", "aten.rnn_")


def check_traced(model: ir.Model, program: Any, axes: Sequence[dict[int, str]]) -> None:
    """Compare what was asked for with the exporter's graph.

    Args:
        model: As the exporter wrote it.
        program: The ExportedProgram that it was made from.
        axes: Of each leaf of the arguments, the names of its axes (see ``torch_shapes.of_leaves``).

    Raises:
        Unsupported: State would be lost, or a dynamic dimension is fixed.
    """
    _refuse_lost(program)
    _refuse_fixed(model, program, axes)
    _refuse_lengths(program)


def _refuse_lost(program: Any) -> None:
    """Refuse modules that remember: the exporter drops what they write to their buffers.

    Raises:
        Unsupported: A buffer that is written feeds an output.
    """
    signature = program.graph_signature
    written = set(signature.buffers_to_mutate.values())
    outputs = set(signature.user_outputs)
    for node in program.graph.nodes:
        if signature.inputs_to_buffers.get(node.name) in written and _reaches(node, outputs):
            raise Unsupported(
                "the module writes to it, and an ONNX graph keeps no state between runs",
                where=f"buffer {signature.inputs_to_buffers[node.name]!r}",
                fix="Take the state as an input and return the new one.",
            )


def _reaches(node: Any, names: set[str]) -> bool:
    """Whether a value of an fx graph has a part in one of these."""
    seen, pending = {node}, [node]
    while pending:
        new = set(pending.pop().users) - seen
        seen |= new
        pending += new
    return any(n.name in names for n in seen)


def _refuse_fixed(model: ir.Model, program: Any, axes: Sequence[dict[int, str]]) -> None:
    """Refuse a trace in which a dimension asked to be dynamic is fixed; the exporter fixes it without a word.

    Raises:
        Unsupported: Names the dimension, and the axis with the size that it got.
    """
    kept = " ".join(str(d) for value in model.graph.inputs for d in value.shape or () if not isinstance(d, int))
    names = set(kept.replace("*", " ").replace("+", " ").split())
    places = list(torch_shapes.of_inputs(model, program, axes))
    for name in dict.fromkeys(n for dims in axes for n in dims.values() if n not in names):
        where = [(v, axis, v.shape[axis]) for v, dims in places for axis, n in dims.items() if n == name and v.shape]
        sizes = [f"axis {axis} of {v.name!r} is {size} whatever comes" for v, axis, size in where]
        raise Unsupported(
            "the module's code fixes the size of this dimension or ties it to another"
            + (f": {sizes[0]}" if sizes else ""),
            where=f"dynamic dimension {name!r}",
            fix="Drop it from dynamic_shapes, or compute with the tensor's own shape in forward "
            "(a Python loop over an axis is as long as in the example).",
        )


def _refuse_lengths(program: Any) -> None:
    """Refuse recurrences over a dynamic length: torch believes their result to be as long as the example's.

    Raises:
        Unsupported: Names the layer.
    """
    for node in program.graph.nodes:
        if str(node.target).startswith(_RECURRENT):
            result = next(iter(node.meta["val"]))
            lost = _symbols(node.args[0].meta["val"]) - _symbols(result)
            if lost:
                raise Unsupported(
                    "torch cannot trace a recurrence over a dynamic length",
                    where=f"operator {node.target}",
                    fix="Make the batch dynamic only, or step through the sequence outside of the module.",
                )


def _symbols(tensor: Any) -> set[str]:
    return {str(d) for d in tensor.shape if not isinstance(d, int)}
