"""What passes see in a model, as data: streams, norms, heads, feed-forward blocks, pairs of factors, embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from graphpress.graph import edit
from graphpress.passes.structure.channels.commuting import survey
from graphpress.passes.structure.channels.ends import ends
from graphpress.passes.structure.channels.follow import by_node
from graphpress.passes.structure.channels.moves import Holder, Move
from graphpress.passes.structure.channels.survey import Survey
from graphpress.passes.structure.layers.factor_places import factor_places
from graphpress.passes.structure.layers.ffn import layer_blocks
from graphpress.passes.structure.layers.heads import Heads, find_heads
from graphpress.passes.structure.layers.norms import Norm, find_norms
from graphpress.passes.structure.layers.pairs import find_pairs
from graphpress.passes.structure.layers.streams import ResidualStream, find_streams


@dataclass
class Overview:
    """Rows of named figures, JSON-able.

    Attributes:
        streams: name, width, sums, writers, readers, norms, where it leaves and is turned back, and what keeps it from
            changing basis.
        norms: name, kind, width, gain, and the stream it reads.
        blocks: feed-forward blocks: name, activation, whether it is gated, width, hidden, out, whether its input is
            carried around it; and what looks like one, with the reason why it is none.
        factors: Where SmoothQuant can divide: the value, what writes its channels, the layers that read it, or each
            layer with the reason why there is no such place.
        heads: name, size, query and key heads, the layers that its values come from and go to, and what is in the way.
        pairs: the activation, width, and the layers that read it.
        embeddings: name, rows, width, and the stream it writes.
    """

    streams: list[dict[str, Any]] = field(default_factory=list)
    norms: list[dict[str, Any]] = field(default_factory=list)
    blocks: list[dict[str, Any]] = field(default_factory=list)
    factors: list[dict[str, Any]] = field(default_factory=list)
    heads: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    embeddings: list[dict[str, Any]] = field(default_factory=list)


def overview(model: ir.Model) -> Overview:
    """The structure of all graphs of a model outside functions."""
    found = Overview()
    for graph in [g for g in edit.graphs(model) if isinstance(g, ir.Graph)]:
        norms = by_node(find_norms(graph))
        streams = find_streams(graph, norms)
        found.streams += [_stream(s) for s in streams]
        found.norms += [_norm(n, streams) for n in dict.fromkeys(norms.values())]
        channels = survey(graph, Move.ROTATE, norms)
        found.heads += _all_heads(graph, channels)
        found.pairs += [
            {"activation": p.activation.name, "width": p.width, "layers": [v.node.name for v in p.down]}
            for p in find_pairs(graph)
        ]
        found.blocks += _blocks(graph)
        found.factors += _factors(graph)
        found.embeddings += [_embedding(w, s) for s in streams for w in s.writers if w.node.op_type == "Gather"]
    return found


def _stream(stream: ResidualStream) -> dict[str, Any]:
    left = ends(stream.carried)
    return {
        "name": stream.name,
        "width": stream.width,
        "sums": stream.sums,
        "writers": [w.name for w in stream.writers],
        "readers": [r.name for r in stream.readers],
        "norms": [n.name for n in stream.norms],
        "turned_back": list(dict.fromkeys(e.value.name for e in left)),
        "blocked": [] if left else [f"{b.where}: {b.why}" for b in stream.carried.blocks],
    }


def _blocks(graph: ir.Graph) -> list[dict[str, Any]]:
    found = layer_blocks(graph)
    known = [
        {
            "name": b.name, "activation": b.activation, "gated": b.gate is not None, "width": b.width,
            "hidden": b.hidden, "out": b.out, "residual": b.residual, "blocked": "",
        }
        for b in found.blocks
    ]  # fmt: skip
    none = dict.fromkeys(("activation", "gated", "width", "hidden", "out", "residual"))
    return known + [{"name": name, **none, "blocked": why} for name, why in found.refused]


def _factors(graph: ir.Graph) -> list[dict[str, Any]]:
    found = factor_places(graph)
    known = [
        {
            "value": p.value.name, "written_by": list(dict.fromkeys(w.name for w in p.carried.writers)),
            "read_by": [r.node.name for r in p.readers], "blocked": "",
        }
        for p in found.places
    ]  # fmt: skip
    return known + [
        {"value": view.input.name, "written_by": [], "read_by": [view.node.name], "blocked": why}
        for view, why in found.refused
    ]


def _norm(norm: Norm, streams: list[ResidualStream]) -> dict[str, Any]:
    gain = norm.gain_array()
    return {
        "name": norm.name,
        "kind": "layer" if norm.centred else "rms",
        "width": norm.width,
        "gain": "none" if gain is None else "uniform" if norm.uniform() else "own",
        "stream": next((s.name for s in streams if norm.input in s.carried.members), ""),
    }


def _all_heads(graph: ir.Graph, channels: Survey) -> list[dict[str, Any]]:
    found = find_heads(graph)
    none: dict[str, Any] = {"size": None, "heads": None, "key_heads": None, "values_from": [], "values_to": []}
    left = [n for n in graph if n.op_type == "Attention" and n not in {h.node for h in found}]
    why = ["the sizes of its heads are not known"]
    return [_heads(h, channels) for h in found] + [{"name": n.name, **none, "blocked": why} for n in left]


def _heads(heads: Heads, channels: Survey) -> dict[str, Any]:
    carried = heads.values(channels)
    return {
        "name": heads.name,
        "size": heads.size,
        "heads": heads.count,
        "key_heads": heads.key_count,
        "values_from": [w.name for w in carried.writers if not w.summand],
        "values_to": [w.name for w in carried.readers],
        "blocked": [f"{b.where}: {b.why}" for b in carried.blocks],
    }


def _embedding(weight: Holder, stream: ResidualStream) -> dict[str, Any]:
    tensor = edit.constant_tensor(weight.node.inputs[weight.slot])
    rows = tensor.shape.numpy()[0] if tensor is not None else None
    return {"name": weight.name, "rows": rows, "width": stream.width, "stream": stream.name}
