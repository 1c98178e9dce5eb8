"""Samples in the shapes that a target will run: a batch and a length of its phase, whatever calibration has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from graphpress.errors import BadRequest
from graphpress.runner import Arrays
from graphpress.target import Target

BATCH, SEQUENCE = "batch", "sequence"  # what axes are called whatever a model calls them
_TOKENS = 2  # axes at least of an input that has tokens


def shaped(model: ir.Model, feeds: Arrays, target: Target | None) -> Arrays:
    """``feeds`` cut, or repeated from the start, along the axes that the target's phase gives a size.

    A key of ``target.shapes`` is the name of a symbolic axis of inputs; or ``batch``, their first axis; or
    ``sequence``, the second axis of those that hold tokens (integers), or floats [batch, sequence, features].

    Raises:
        BadRequest: The model has no such axis, or one of another fixed size.
    """
    if target is None or not target.shapes:
        return feeds
    inputs = {v.name or "": v for v in model.graph.inputs if v.name in feeds}
    sizes: dict[tuple[str, int], int] = {}
    for key, size in target.shapes.items():
        found = list(_axes(inputs, key))
        where = f"target {target.title!r}, axis {key!r}"
        if not found:
            known = sorted({str(d) for v in inputs.values() for d in v.shape or () if not isinstance(d, int)})
            fix = f"Its open axes are {', '.join(known)}." if known else "Export it with an open one."
            raise BadRequest("the inputs of the model have no such axis", where=where, fix=fix)
        for name, axis in found:
            fixed = (inputs[name].shape or ())[axis]
            if isinstance(fixed, int) and fixed != size:
                fix = "Export it with an open axis, or ask for that size."
                raise BadRequest(f"input {name!r} is fixed to {fixed}, not {size}", where=where, fix=fix)
            sizes[name, axis] = size
    made = dict(feeds)
    for (name, axis), size in sizes.items():
        made[name] = np.take(made[name], np.arange(size), axis=axis, mode="wrap")
    return made


def _axes(inputs: Mapping[str, ir.Value], key: str) -> Iterator[tuple[str, int]]:
    """(input, axis) that a key means."""
    named = [(n, i) for n, v in inputs.items() for i, d in enumerate(v.shape or ()) if _symbol(d) == key]
    if named or key not in (BATCH, SEQUENCE):
        yield from named
        return
    ranks = {n: len(v.shape) for n, v in inputs.items() if v.shape is not None}
    if key == BATCH:
        yield from ((n, 0) for n, rank in ranks.items() if rank)
        return
    whole = [n for n in ranks if inputs[n].dtype is not None and inputs[n].dtype in _INTEGERS and ranks[n] == _TOKENS]
    yield from ((n, 1) for n in whole or [n for n in ranks if ranks[n] == _TOKENS + 1])


def _symbol(dim: int | ir.SymbolicDim) -> str | None:
    return None if isinstance(dim, int) else dim.value


_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)
