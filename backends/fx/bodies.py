"""Bodies of If, Loop, Scan and SequenceMap as modules: what they read of the graphs around comes as arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx_ir as ir
from torch import fx

from graphpress.backends.fx import host
from graphpress.backends.fx.host_nodes import Item
from graphpress.backends.fx.values import Values
from graphpress.errors import Unsupported

Result: TypeAlias = tuple[str | None, tuple[int | None, ...] | None]  # type and shape, as far as the graph knows them


@dataclass(frozen=True)
class Body:
    """One body.

    Attributes:
        module: Takes what the operator gives it and then what it captures; gives a tuple.
        captured: Values of the graphs around it that it reads.
        results: What it gives; None for what is always true (the condition of a Loop that only counts).
    """

    module: fx.GraphModule
    captured: list[ir.Value]
    results: list[Result | None]


def build(graph: ir.Graph, inner: Values, op_type: str, fill: Callable[[ir.Graph], None]) -> Body:
    """Build the body of an operator of a type.

    Args:
        graph: The body.
        inner: Its values, nothing bound yet.
        op_type: Of the operator that has it.
        fill: Adds the nodes of the body to ``inner``.

    A Loop's body takes its turn as a number and no condition, which is true whenever it runs; the condition that it
    gives is a number where it is one on the host.

    Raises:
        Unsupported: An operator in it has no function, or it is a branch of If with inputs.
    """
    if op_type == "If" and graph.inputs:
        raise Unsupported("branches of If take no inputs", fix="Let them read the values around them.")
    inputs, kinds = list(graph.inputs), ["Tensor"] * len(graph.outputs)
    if op_type == "Loop":
        _bind_turn(inner, *inputs[:2])
        inputs, kinds[0] = inputs[2:], "Number"
    for value in inputs:
        inner.bind(value, inner.placeholder(value.name or "input"))
    fill(graph)
    given = [inner.wanted(v, kind) for v, kind in zip(graph.outputs, kinds, strict=True)]
    inner.graph.output(tuple(given))
    results = [None if g is True else _result(v) for v, g in zip(graph.outputs, given, strict=True)]
    return Body(inner.shelf.module(inner.graph), list(inner.captured.values()), results)


def _bind_turn(inner: Values, turn: ir.Value, condition: ir.Value) -> None:
    number: Any = inner.placeholder(turn.name or "turn")
    if _rank(turn):
        number = inner.graph.call_function(host.numbers, (number,))
    inner.items[id(turn)] = _of_one(turn, number, "INT64")
    inner.items[id(condition)] = _of_one(condition, [True] if _rank(condition) else True, "BOOL")


def _of_one(value: ir.Value, ref: Any, dtype: str) -> Item:
    return Item(ref, True, dtype, _rank(value), _rank(value) or None)


def _rank(value: ir.Value) -> int:
    """0, or 1 for a list of one."""
    return 0 if value.shape is None else len(value.shape)


def _result(value: ir.Value) -> Result:
    dtype = value.dtype.name if value.dtype is not None else None
    shape = None if value.shape is None else tuple(d if isinstance(d, int) else None for d in value.shape)
    return dtype, shape
