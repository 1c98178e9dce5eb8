"""What of a model is compared: its outputs, each by its nature, and inner values for those that cannot be compared.

What an output is, the gate's own rules say (``job.natures``): nothing is guessed here. Whole numbers, outputs without
elements and those whose rows the data choose (NonMaxSuppression) are left out. Operators that only these would see are
seen at the last float values before them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Skip
from graphpress.errors import BadRequest
from graphpress.graph import edit, randomness
from graphpress.job import natures
from graphpress.job.natures import Nature
from graphpress.runner import Arrays

_CHOOSE = ("NonMaxSuppression", "Unique")  # rows whose number and order hang on small differences
_DEPEND = (*_CHOOSE, "NonZero", "Compress", "Loop", "SequenceAt", "StringSplit")  # a size that depends on values
_SEEN = 16  # samples that natures are found from, as many as the gate takes
_ROUNDS = 8  # values without elements before the next that has some


@dataclass(frozen=True)
class Watched:
    """A model and what of it is compared.

    Attributes:
        model: As it was, or a copy with inner values as outputs besides.
        natures: Of the outputs that are compared.
        left_out: Those that are not, with the reason.
    """

    model: ir.Model
    natures: Mapping[str, Nature]
    left_out: tuple[Skip, ...] = ()


def watch(model: ir.Model, ctx: Context) -> Watched:
    """Find what to compare, on a few samples of the calibration data.

    Raises:
        BadRequest: Nothing is left, there is no data, or the model draws random numbers.
    """
    randomness.check_comparable(model, "allocate: sensitivity")
    batches = _batches(model, ctx)
    work, reasons = model, dict[str, str]()
    for _ in range(_ROUNDS):
        seen = _run(work, ctx, batches)
        reasons |= _reasons(work, seen)
        more = _stand_ins(work, reasons)
        if not more:
            break
        work = _with_outputs(work, more)
    kept = {n: a for n, a in _run(work, ctx, batches[:1])[0].items() if n not in reasons}
    found = natures.find(work, kept, {n: k for n, k in ctx.outputs.items() if n in kept})
    if not found:
        said = "; ".join(f"output {n!r} {why}" for n, why in reasons.items())
        fix = "Give the model an output of floats whose shape does not depend on the data."
        raise BadRequest(f"there is nothing to compare: {said}", where="allocate: sensitivity", fix=fix)
    own = {v.name for v in model.graph.outputs}
    instead = ", ".join(n for n in found if n not in own)
    tail = f"; what lies before is compared: {instead}" if instead else ""
    skips = (Skip(f"output {n!r}", f"not compared: it {why}{tail}") for n, why in reasons.items() if n in own)
    return Watched(work, found, tuple(skips))


def _batches(model: ir.Model, ctx: Context) -> list[Arrays]:
    """The samples that natures are found from, then some one by one."""
    why = "sensitivity is measured on calibration data, and there is none"
    drawn = ctx.need("data", "allocate", why, "let `zeroq` make some").take(_SEEN, ctx.seed)
    data = drawn.bind(model)
    exact = data.binding.exact if data.binding else None
    return [next(data.batches(exact or _SEEN)), *list(data.batches(exact or 1))[:4]]


def _run(model: ir.Model, ctx: Context, batches: Sequence[Arrays]) -> list[dict[str, np.ndarray]]:
    runner = ctx.need("run", "allocate")(model)
    return [dict(runner({n: b[n] for n in runner.input_names if n in b})) for b in batches]


def _reasons(model: ir.Model, seen: Sequence[Mapping[str, np.ndarray]]) -> dict[str, str]:
    """Why outputs cannot be compared, by name; those that can are not there."""
    chosen, found = _behind(model, _CHOOSE), dict[str, str]()
    for value in model.graph.outputs:
        name, first, singles = value.name or "", seen[0][value.name or ""], [s[value.name or ""] for s in seen[1:]]
        if not _float(first):
            found[name] = "holds no floats"
        elif any(a.size == 0 for a in (first, *singles)):
            found[name] = "has no elements"
        elif value in chosen:
            found[name] = f"is made of rows that {chosen[value]} chooses"
        elif len({a.shape for a in singles}) > 1:
            found[name] = "has a shape that depends on the data"
    return found


def _float(array: object) -> bool:
    return isinstance(array, np.ndarray) and (array.dtype.kind in "fV" or array.dtype.name == "bfloat16")


def _behind(model: ir.Model, types: Sequence[str]) -> dict[ir.Value, str]:
    """Values that depend on an operator of these types, with that type."""
    found: dict[ir.Value, str] = {}
    for node in model.graph:
        first = node.op_type if node.op_type in types else next((found[v] for v in edit.reads(node) if v in found), "")
        if first:
            found |= dict.fromkeys(node.outputs, first)
    return found


def _stand_ins(model: ir.Model, reasons: Mapping[str, str]) -> list[ir.Value]:
    """The last float values before outputs that are left out, but for those that an output still shows."""
    outputs = {v.name: v for v in model.graph.outputs}
    shown = set(_before([v for n, v in outputs.items() if n not in reasons]))
    depend = set(_behind(model, _DEPEND))
    found: dict[ir.Value, None] = {}
    seen, pending = set[ir.Value](), [v for n, v in outputs.items() if n in reasons]
    while pending:
        node = pending.pop().producer()
        for value in edit.reads(node) if node is not None else ():
            if value in seen or edit.is_constant(value) or value.producer() is None:
                continue
            seen.add(value)
            usable = value.dtype is not None and value.dtype.is_floating_point() and value not in depend
            if usable and value.name not in reasons:
                found[value] = None
            else:
                pending.append(value)
    return [v for v in found if v not in shown and v.name not in outputs]


def _before(values: Sequence[ir.Value]) -> Iterator[ir.Value]:
    """These values and all that they are computed from."""
    seen, pending = set[ir.Value](), list(values)
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        yield value
        node = value.producer()
        pending += edit.reads(node) if node is not None else []


def _with_outputs(model: ir.Model, more: Sequence[ir.Value]) -> ir.Model:
    names = {v.name for v in more}
    clone = model.clone()
    clone.graph.outputs.extend(v for n in clone.graph for v in n.outputs if v.name in names)
    return clone
