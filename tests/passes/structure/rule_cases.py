"""Graphs for the rule table: two layers, one operator between them; and a move put through the engine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from graphpress.passes.structure.channels.commuting import survey
from graphpress.passes.structure.channels.follow import Carried, follow
from graphpress.passes.structure.channels.ledger import Ledger, factor, narrow, permute, turn
from graphpress.passes.structure.channels.moves import READER, WRITER, Move
from graphpress.passes.structure.channels.survey import Survey
from tests.passes.rotating import double, weighted

PERMUTE, SLICE, SCALE, SIGN, ROTATE = Move
ANY = (PERMUTE, SLICE, SCALE, SIGN, ROTATE)


@dataclass(frozen=True)
class Sizes:
    """Batch, tokens (even), heads and the size of one."""

    b: int
    t: int
    h: int
    d: int

    @property
    def c(self) -> int:
        return self.h * self.d


def ints(name: str, *values: int) -> str:
    return f"{name} = Constant <value_ints = [{', '.join(map(str, values))}]> () "


def floats(name: str, *values: float) -> str:
    return f"{name} = Constant <value_floats = [{', '.join(map(str, values))}]> () "


def graph(body: str, s: Sizes, more: Mapping[str, tuple[int, ...]], image: bool, width: int) -> ir.Model:
    """x -> layer h -> body -> k [.., width, ..] -> layer y, in float64."""
    if image:
        weights = {"w": (s.c, 3, 1, 1), "v": (5, width, 1, 1)} | dict(more)
        text, inputs = f"h = Conv (x, w) {body} y = Conv (k, v)", f"float[{s.b},3,4,4] x"
    else:
        weights = {"w": (6, s.c), "v": (width, 5)} | dict(more)
        text, inputs = f"h = MatMul (x, w) {body} y = MatMul (k, v)", f"float[{s.b},{s.t},6] x"
    made = weighted(text, {n: z for n, z in weights.items() if re.search(rf"[( ]{n}[,)]", text)}, inputs)
    for name, value in made.graph.initializers.items():
        if name.startswith("positive"):
            value.const_value = ir.Tensor(np.abs(value.const_value.numpy()) + np.float32(0.1), name=name)
    return made


def outputs(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """By the reference implementation of ONNX, in float64."""
    return ReferenceEvaluator(ir.to_proto(double(model))).run(None, dict(feeds))[0]


def inputs(model: ir.Model) -> dict[str, np.ndarray]:
    (x,) = model.graph.inputs
    return {"x": np.random.default_rng(5).normal(size=[d for d in x.shape if isinstance(d, int)])}


def last_reader(model: ir.Model) -> ir.Node:
    return next(n for n in model.graph if n.outputs[0].name == "y")


def found(model: ir.Model, move: Move) -> Survey | Carried:
    """What the engine says of the channels that the last layer reads."""
    seen = survey(model.graph, move)
    if move in (PERMUTE, SLICE):
        return seen
    reader = last_reader(model)
    value = reader.inputs[0]
    assert value is not None
    return follow(seen, value, 1 if reader.op_type == "Conv" else -1)


def why_not(model: ir.Model, move: Move) -> str:
    """Why nothing is done to what the last layer reads, or ""."""
    seen = found(model, move)
    if isinstance(seen, Carried):
        return "; ".join(b.why for b in seen.blocks) or ("" if seen.writers and seen.readers else "nothing writes it")
    reader = next((h for h in seen.readers if h.node is last_reader(model)), None)
    if reader is None:
        return "it holds no channels that are known: " + "; ".join(e.why for e in seen.events)
    free = np.concatenate([[-1], *seen.groups()])
    return "" if np.isin(seen.roots[reader.lanes], free).any() else seen.why_stuck(reader.lanes)


def moved(model: ir.Model, move: Move, seed: int) -> tuple[ir.Model, ir.Model]:
    """(what the result is to be compared with, a copy that the engine changed), both in float64."""
    before = double(model)
    after, rng = before.clone(), np.random.default_rng(seed)
    seen = found(after, move)
    if isinstance(seen, Survey):
        roots = seen.roots
        new = np.arange(len(roots))
        for group in seen.groups():
            order = rng.permutation(group)
            new[group] = np.roll(group, 1) if (order == group).all() else order
        if move is PERMUTE:
            assert permute(seen, new)
        else:
            before = _thinned(before, after, seen, rng)
        return before, after
    ledger, roots = Ledger(), seen.alike
    if move is ROTATE:
        change = turn(np.linalg.qr(rng.normal(size=(seen.extent, seen.extent)))[0])
        changes = dict.fromkeys((WRITER, READER), change)
    else:
        by = np.exp(rng.normal(size=len(roots))) * (rng.choice([-1.0, 1.0], len(roots)) if move is SIGN else 1)
        changes = {WRITER: factor(by[roots], np.divide), READER: factor(by[roots])}
    for holder in seen.holders:
        ledger.add(holder, changes[holder.side])
    assert ledger.write()
    return before, after


def _thinned(before: ir.Model, after: ir.Model, seen: Survey, rng: np.random.Generator) -> ir.Model:
    """Half of each group goes; to compare with: the layers that read them have zeros there."""
    roots = seen.roots
    kept = np.ones(len(roots), bool)
    for group in seen.groups():
        kept[rng.permutation(group)[: len(group) // 2]] = False
    zeroed = before.clone()
    readers = {h.node.name: ~kept[roots[h.lanes]] for h in seen.readers}
    for node in zeroed.graph:
        if node.name in readers:
            value = node.inputs[1]
            value.const_value = ir.Tensor(np.where(readers[node.name], 0.0, value.const_value.numpy()), name=value.name)
    assert narrow(seen, kept)
    return zeroed
