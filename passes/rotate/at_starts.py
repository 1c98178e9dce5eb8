"""Streams that begin behind a norm with a gain of its own: a product of their own there, which can take a basis up."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from graphpress.contracts import PassReport
from graphpress.graph import edit
from graphpress.keys import TURNS
from graphpress.passes.rotate.at_ends import take_out
from graphpress.passes.rotate.centre import kept
from graphpress.passes.structure.channels.commuting import survey
from graphpress.passes.structure.channels.ends import ends
from graphpress.passes.structure.channels.follow import by_node, follow
from graphpress.passes.structure.channels.moves import Holder, Move
from graphpress.passes.structure.channels.survey import Survey
from graphpress.passes.structure.layers.norms import Norm, find_norms
from graphpress.passes.structure.layers.streams import ResidualStream, find_streams

CHEAP = 1 / 12  # of the weights of a stream's layers: what products at its starts may have
_LAYERS = ("MatMul", "Gemm", "Conv")
Edge: TypeAlias = tuple[ir.Node, int]
GainKept: TypeAlias = Callable[[Norm, Survey], str]
"""Why a norm of a stream keeps its gain, or "" where what reads it can take it up."""


def begin(graph: ir.Graph, gain_kept: GainKept, report: PassReport) -> None:
    """Put a product with the identity behind each norm whose output is added to a stream, where that is cheap and lets
    the stream change basis. Layers that read the norm itself go on reading it.

    Pre-norm models with a norm on the embedding have one such place. Post-norm encoders have one at each norm, which is
    too much unless their layers are wide.

    Args:
        graph: One graph.
        gain_kept: Says whether the gains can be folded.
        report: Gets how many there are, or why there is none.
    """
    norms = by_node(find_norms(graph))
    if not any(beside_layers(norm) for norm in norms.values()):
        return
    found = survey(graph, Move.ROTATE, norms)
    for stream in find_streams(graph, norms):
        starts = _starts(stream, found)
        share = len(starts) * stream.width**2 / max(_weights(stream.carried.holders), 1)
        if share > CHEAP:
            why = f"products behind the {len(starts)} norms that it begins at would have {share:.0%} of its weights"
            report.skip(stream.seed, f"residual stream: {why}")
            continue
        made = [_product(norm, uses) for norm, uses in starts.items()]
        if not _all_turn(graph, made, gain_kept):
            for node in made:
                take_out(node)
        elif made:
            report.changed += len(made)
            done = float(report.metrics.get("products at starts of streams", 0))
            report.metrics["products at starts of streams"] = done + len(made)


def turnable(stream: ResidualStream, found: Survey, gain_kept: GainKept) -> bool:
    """Whether a stream can change basis once the gains of its norms are folded and their means taken away."""
    if stream.carried.blocks and not ends(stream.carried):
        return False
    for norm in stream.norms:
        if not norm.uniform() and gain_kept(norm, found):
            return False
        if norm.centred and kept(follow(found, norm.input), folded=True):
            return False
    return True


def beside_layers(norm: Norm) -> list[Edge]:
    """Who reads a norm that has a gain or bias of its own, but for layers."""
    uses = [] if norm.uniform() else norm.output.uses()
    return [(node, slot) for node, slot in uses if node.op_type not in _LAYERS]


def _starts(stream: ResidualStream, found: Survey) -> dict[Norm, list[Edge]]:
    """Norms whose output is added to the stream, or read by a norm again, and by whom."""
    starts = {}
    for norm in stream.norms:
        uses = [(node, slot) for node, slot in beside_layers(norm) if node.graph is norm.node.graph]
        carried = follow(found, norm.output) if uses else None
        if carried is not None and (carried.writers or set(carried.norms) != {norm}):
            starts[norm] = uses
    return starts


def _weights(holders: Iterable[Holder]) -> int:
    """Elements of the matrices of layers; embeddings are none, they are looked up."""
    tensors = {h.node: edit.constant_tensor(h.node.inputs[h.slot]) for h in holders if h.node.op_type in _LAYERS}
    return sum(t.size for t in tensors.values() if t is not None)


def _product(norm: Norm, uses: Iterable[Edge]) -> ir.Node:
    """The product with the identity of what a norm gives, which those read in its place."""
    value, width = norm.output, norm.width
    anchor = value.producer()
    assert anchor is not None and isinstance(anchor.graph, ir.Graph) and value.dtype is not None and width is not None
    held = edit.add_const(anchor.graph, np.eye(width, dtype=value.dtype.numpy()), f"{value.name}_start")
    made = edit.new_node("MatMul", [value, held], after=anchor, name=f"{value.name}_start")
    edit.like(made.outputs[0], value)
    made.metadata_props[TURNS] = "on"
    for node, slot in uses:
        edit.set_input(node, slot, made.outputs[0])
    return made


def _all_turn(graph: ir.Graph, made: list[ir.Node], gain_kept: GainKept) -> bool:
    """Whether the streams that begin at products can change basis."""
    if not made:
        return True
    norms = by_node(find_norms(graph))
    found = survey(graph, Move.ROTATE, norms)
    behind = {v: stream for stream in find_streams(graph, norms) for v in stream.carried.members}
    streams = [behind.get(node.outputs[0]) for node in made]
    return all(s is not None and turnable(s, found, gain_kept) for s in streams)
