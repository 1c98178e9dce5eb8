"""Bases that a quantized model can still change: of its residual streams, and of the values of its attention heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from graphpress.contracts import PassReport
from graphpress.graph import edit
from graphpress.graph.quantized import activation, decodes, pair, unquantized
from graphpress.ops.base import DOMAIN
from graphpress.ops.clip_token import OP as CLIP
from graphpress.passes.recover.engine.student import typed
from graphpress.passes.recover.rounding.grids import quantized_layers
from graphpress.passes.structure.channels.commuting import survey
from graphpress.passes.structure.channels.follow import Carried, by_node
from graphpress.passes.structure.channels.moves import Holder, Move
from graphpress.passes.structure.layers.heads import find_heads
from graphpress.passes.structure.layers.norms import find_norms
from graphpress.passes.structure.layers.streams import find_streams

_SHOWN = 3  # reasons that a basis stays, at most


@dataclass(frozen=True, eq=False)
class Basis:
    """One that can change.

    Attributes:
        name: Of the values that stand in it.
        size: Channels that mix.
        holders: Constants that turn with it, in the float form of the model; see ``placed``.
    """

    name: str
    size: int
    holders: tuple[Holder, ...]


def bases_of(model: ir.Model, report: PassReport, *, streams: bool = True, values: bool = True) -> list[Basis]:
    """The bases of the main graph; a Skip for each stream and attention that keeps its own."""
    plain, found = without_quantizers(model), list[Basis]()
    norms, turned, fixed = by_node(find_norms(plain.graph)), set[ir.Value](), _Fixed(model)
    for stream in find_streams(plain.graph, norms) if streams else ():
        if why := stream.obstacles() or fixed.obstacles(stream.carried):
            more = f", and {len(why) - _SHOWN} more" if len(why) > _SHOWN else ""
            report.skip(stream.name, f"residual stream: {'; '.join(why[:_SHOWN])}{more}")
            continue
        turned |= stream.carried.members.keys()
        found.append(Basis(stream.name, stream.width, tuple(stream.carried.holders)))
    commuting = survey(plain.graph, Move.ROTATE, norms)
    for heads in find_heads(plain.graph) if values else ():
        carried = heads.values(commuting)
        if carried.members.keys() <= turned:
            continue  # of another attention that shares its values
        if why := [w] if (w := heads.fixed(carried, turned)) else fixed.obstacles(carried):
            report.skip(heads.name, f"values: {why[0]}")
            continue
        turned |= carried.members.keys()
        found.append(Basis(heads.name, heads.value_size, tuple(carried.holders)))
    return found


def without_quantizers(model: ir.Model) -> ir.Model:
    """A copy in which every value is what it would be if nothing were quantized; what is left keeps its name."""
    copy = typed(model).clone()
    for value in [v for n in copy.graph for v in n.outputs]:
        source = _source(value)
        if source is not None and source is not value:
            edit.replace(value, source)
            edit.remove_unused([value])
    return copy


def placed(model: ir.Model, basis: Basis) -> list[Holder]:
    """The constants of a basis in a quantized model: that of a weight is held by what encodes it.

    The model is the one that was asked for the basis, or a copy, whether or not its weights are quantized.
    """
    nodes = {n.name: n for n in model.graph}
    return [_placed(h, nodes[h.node.name]) for h in basis.holders]


def _placed(holder: Holder, node: ir.Node) -> Holder:
    found = None if edit.is_constant(node.inputs[holder.slot]) else pair(node.inputs[holder.slot])
    return replace(holder, node=node) if found is None else replace(holder, node=found.encode, slot=0)


def _source(value: ir.Value) -> ir.Value | None:
    found = activation(value)
    source = found.source if found is not None and found.kind != "static" else unquantized(value)
    maker = source.producer() if source is not None else None
    return maker.inputs[0] if maker is not None and (maker.domain, maker.op_type) == (DOMAIN, CLIP.name) else source


class _Fixed:
    """What of a quantized model keeps a class of values in its basis."""

    def __init__(self, model: ir.Model) -> None:
        self.nodes = {n.name: n for n in model.graph}
        self.weights = {q.pair.decode for q in quantized_layers(model, PassReport())}
        self.values = {v.name for v in _static(model)}

    def obstacles(self, carried: Carried) -> list[str]:
        why = [f"{v.name!r} is quantized by a constant scale" for v in carried.members if v.name in self.values]
        return why + [w for h in carried.holders if (w := self._held(h))]

    def _held(self, plain: Holder) -> str:
        value = self.nodes[plain.node.name].inputs[plain.slot]
        if edit.is_constant(value) or (value is not None and value.producer() in self.weights):
            return ""
        return f"what {plain.name} reads is quantized in a way that cannot be done anew"


def _static(model: ir.Model) -> Iterator[ir.Value]:
    """What is quantized by constants and is no constant."""
    for node in model.graph:
        source = unquantized(node.outputs[0]) if decodes(node) else None
        dynamic = activation(node.outputs[0])
        if source is not None and not edit.is_constant(source) and (dynamic is None or dynamic.kind == "static"):
            yield source
