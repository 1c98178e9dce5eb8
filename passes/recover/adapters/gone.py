"""The one check that an adapter is gone: nothing that it made is left, and the model computes what it did with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.errors import PassError
from graphpress.graph import edit
from graphpress.keys import SOURCE
from graphpress.passes.recover.adapters.base import attached, kind
from graphpress.runner import Arrays, Executor

TOLERANCE = {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 1e-4}  # of an output's root mean square; others: equal
_HALF = 1e-2


@dataclass(frozen=True)
class Skeleton:
    """All of a model but the elements of its constants: one line a thing, with names, wiring, types and metadata."""

    lines: frozenset[str]
    order: tuple[str, ...]  # of the nodes of the main graph

    @classmethod
    def of(cls, model: ir.Model) -> Skeleton:
        """Taken before an adapter is inserted."""
        order = tuple(node.name or "" for node in model.graph)
        return cls(frozenset(_lines(model)), order)

    def differences(self, model: ir.Model) -> list[str]:
        """What ``model`` has and this has not, then what it lacks; empty where only elements of constants differ."""
        now = Skeleton.of(model)
        found = [f"left: {line}" for line in sorted(now.lines - self.lines)]
        found += [f"missing: {line}" for line in sorted(self.lines - now.lines)]
        return found or (["the order of nodes is another"] if now.order != self.order else [])


def _lines(model: ir.Model) -> Iterator[str]:
    yield from (f"model {key}={text}" for key, text in model.metadata_props.items())
    yield from (f"opset {domain!r} {version}" for domain, version in model.opset_imports.items())
    yield from (f"function {function.identifier()}" for function in model.functions.values())
    for number, graph in enumerate(edit.graphs(model)):
        yield from (f"{number} metadata {key}={text}" for key, text in graph.metadata_props.items())
        for what, values in (("input", graph.inputs), ("output", graph.outputs)):
            yield f"{number} {what}s {', '.join(v.name or '' for v in values)}"
        if isinstance(graph, ir.Graph):
            yield from (f"{number} initializer {_value(v)}" for v in graph.initializers.values())
        for node in graph:
            read = ", ".join("" if v is None else v.name or "" for v in node.inputs)
            made = ", ".join(_value(v) for v in node.outputs)
            yield f"{number} node {node.name} = {node.domain}::{node.op_type}({read}) -> {made} {_props(node)}"


def _value(value: ir.Value) -> str:
    return f"{value.name} {value.type} {value.shape} {_props(value)}"


def _props(thing: ir.Value | ir.Node) -> str:
    """Attributes and metadata, but for the note where a trained constant comes from."""
    attributes = thing.attributes.items() if isinstance(thing, ir.Node) else ()
    said = [f"{k}={_attribute(a)}" for k, a in attributes]
    said += [f"{k}={v}" for k, v in thing.metadata_props.items() if k != SOURCE]
    return " ".join(sorted(said))


def _attribute(attribute: ir.Attr) -> str:
    """Bodies are graphs of their own, listed elsewhere; a tensor stands for its elements."""
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return "body"
    return str(attribute.as_tensor().numpy().tolist()) if attribute.type == ir.AttributeType.TENSOR else str(attribute)


def fold_all(
    model: ir.Model, before: Skeleton, ctx: Context, feeds: Sequence[Arrays] = (), *, tolerance: float | None = None
) -> int:
    """Fold every adapter of a model and prove that nothing is left of any; how many there were.

    Args:
        model: Changed in place; where this raises it may be half folded.
        before: Of the model before the first of them was inserted.
        feeds: Inputs on which the outputs must be what they were, in ``ctx.oracle`` (or ``ctx.run``).
        tolerance: Largest root mean square of a difference, as a share of the output's; None: by element type.

    Raises:
        BadRequest: One of them cannot be folded exactly.
        PassError: Something is left, or an output is another.
    """
    found, whole = attached(model), model.clone() if feeds else None
    for one in reversed(found):
        kind(one.adapter).fold(model, one, ctx)
    check_gone(model, before)
    execute = ctx.oracle or ctx.run
    if whole is not None and execute is not None:
        same_outputs(whole, model, execute, feeds, tolerance)
    return len(found)


def check_gone(model: ir.Model, before: Skeleton) -> None:
    """Prove that nothing is left of any adapter.

    Raises:
        PassError: Names what is.
    """
    if (left := before.differences(model)) or (left := [f"{a.adapter} at {a.site}" for a in attached(model)]):
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        raise PassError(f"the folded model is not the one before: {'; '.join(left[:3])}{more}", where="adapters")


def same_outputs(
    whole: ir.Model, folded: ir.Model, execute: Executor, feeds: Sequence[Arrays], tolerance: float | None = None
) -> None:
    """Hold the folded model to the outputs that it had with its adapters.

    Raises:
        PassError: Names the output and how far it is off.
    """
    runners = execute(whole), execute(folded)
    for feed in feeds:
        wanted, got = (runner(feed) for runner in runners)
        for name in wanted:
            _same(name, wanted, got, tolerance)


def _same(name: str, wanted: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], tolerance: float | None) -> None:
    a, b = wanted[name], got[name]
    if a.dtype.kind not in "fV":
        off, allowed = float(not np.array_equal(a, b)), 0.0
    else:
        allowed = TOLERANCE.get(a.dtype, _HALF) if tolerance is None else tolerance
        x, y = a.astype(np.float64), b.astype(np.float64)
        size = float(np.sqrt(np.mean(x * x))) if x.size else 0.0
        off = 0.0 if np.array_equal(x, y, equal_nan=True) else float(np.sqrt(np.mean((x - y) ** 2))) / (size or 1.0)
    if not off <= allowed:
        raise PassError(
            f"output {name!r} is {off:.2g} of its size off what it was before the fold, {allowed:g} is allowed",
            where="adapters",
        )  # fmt: skip
