"""Residual streams: classes of values tied by sums, norms and reshapes, with the weights that write and read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphpress.graph import edit
from graphpress.passes.structure.channels.commuting import survey
from graphpress.passes.structure.channels.follow import Carried, by_node, follow
from graphpress.passes.structure.channels.moves import Holder, Move
from graphpress.passes.structure.layers.norms import Norm, find_norms


@dataclass(frozen=True, eq=False)
class ResidualStream:
    """A class of values that must change basis together.

    Attributes:
        seed: One of its values, which gives it a name.
        width: Its channels.
        carried: Its values, weights, norms, and what keeps it from changing basis.
    """

    seed: ir.Value
    width: int
    carried: Carried

    @property
    def name(self) -> str:
        return self.seed.name or "?"

    @property
    def writers(self) -> list[Holder]:
        """Layers, embeddings and constants that write it."""
        return self.carried.writers

    @property
    def readers(self) -> list[Holder]:
        """Layers that read it, directly or behind a norm."""
        return self.carried.readers

    @property
    def norms(self) -> list[Norm]:
        return list(self.carried.norms)

    def obstacles(self) -> list[str]:
        """What keeps it in its basis."""
        found = [f"{b.where}: {b.why}" for b in self.carried.blocks]
        found += [why for n in self.norms if (why := n.fixed())]
        return found or ([] if self.writers else ["no weight writes it"])

    @property
    def sums(self) -> int:
        """Sums of two of its values: the places where branches join."""
        met = self.carried.passed
        return sum(n.op_type in ("Add", "Sum") and not any(map(edit.is_constant, n.inputs)) for n in met)


def find_streams(graph: ir.Graph, norms: Mapping[ir.Node, Norm] | None = None) -> list[ResidualStream]:
    """The residual streams of one graph, in order of their first value: what norms read, and sums of branches."""
    norms = by_node(find_norms(graph)) if norms is None else norms
    seen: set[ir.Value] = set()
    streams = []
    found = survey(graph, Move.ROTATE, norms, through=True)
    for seed, axis in _seeds(graph, norms):
        if seed in seen:
            continue
        carried = follow(found, seed, axis)
        seen |= carried.members.keys()
        stream = ResidualStream(seed, carried.extent, carried)
        if stream.sums:
            streams.append(stream)
    return streams


def _seeds(graph: ir.Graph, norms: Mapping[ir.Node, Norm]) -> list[tuple[ir.Value, int]]:
    """Values with the axis of their channels: inputs of norms, and sums with what a layer gives."""
    seeds: list[tuple[ir.Value, int]] = []
    for node in graph:
        norm = norms.get(node)
        if norm is not None and norm.node is node:
            seeds.append((norm.input, -1))
        elif norm is None and node.op_type == "Add" and node.domain == "":
            makers = [v.producer() for v in node.inputs if v is not None and not edit.is_constant(v)]
            kinds = {m.op_type for m in makers if m is not None} & {"MatMul", "Gemm", "Conv"}
            if len(makers) == 2 and kinds:
                seeds.append((node.outputs[0], 1 if "Conv" in kinds else -1))
    return seeds
