"""Values whose channels can be multiplied by factors that the layers behind take back, for SmoothQuant and its kin."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphpress.passes.structure.channels.commuting import survey
from graphpress.passes.structure.channels.follow import Carried, follow
from graphpress.passes.structure.channels.lanes import along
from graphpress.passes.structure.channels.moves import READER, Holder, Move
from graphpress.passes.structure.channels.survey import Survey
from graphpress.passes.structure.layers.linear import Linear, layers


@dataclass(frozen=True, eq=False)
class FactorPlace:
    """A value that only linear layers read, and what can divide its channels."""

    value: ir.Value
    readers: tuple[Linear, ...]
    carried: Carried

    @property
    def condensed(self) -> ir.Node | None:
        """What makes one number of many on the way to the value, the nearest there is."""
        return next(
            (n for n in reversed(self.carried.passed) if n.op_type.endswith("Pool") or "Reduce" in n.op_type), None
        )

    @property
    def axis(self) -> int:
        """Of the value, on which the channels stand."""
        return 1 if self.readers[0].node.op_type == "Conv" else -1

    @property
    def inserted(self) -> bool:
        """Whether nothing makes the channels that could take the factors up: a Mul before the layers does."""
        return not self.carried.writers


@dataclass
class FactorPlaces:
    """Places in order of the graph, and the layers that have none, with the reason."""

    places: list[FactorPlace] = field(default_factory=list)
    refused: list[tuple[Linear, str]] = field(default_factory=list)


def factor_places(nodes: Iterable[ir.Node]) -> FactorPlaces:
    """The places of some nodes, which may be of several graphs."""
    by_value: dict[ir.Value, list[Linear]] = {}
    for layer in layers(list(nodes)):
        by_value.setdefault(layer.input, []).append(layer)
    channels = {g: survey(g or (), Move.SCALE) for g in {v.graph for v in by_value}}
    found = FactorPlaces()
    for value, readers in by_value.items():
        made = _carried(value, readers, channels[value.graph])
        if isinstance(made, str):
            found.refused += [(layer, made) for layer in readers]
        else:
            found.places.append(FactorPlace(value, tuple(readers), made))
    return found


def before_layers(readers: Sequence[Linear]) -> FactorPlace:
    """The place right before layers of one kind that read one value, whatever makes it and reads it too.

    The layers are matrix products, or convolutions without groups.
    """
    count = readers[0].shape[1]
    lanes = [along(np.arange(count), 0 if r.transposed else 1, len(r.shape)) for r in readers]
    holders = [Holder(r.node, 1, at, READER) for r, at in zip(readers, lanes, strict=True)]
    return FactorPlace(readers[0].input, tuple(readers), Carried(holders=holders, alike=np.arange(count)))


def _carried(value: ir.Value, readers: Sequence[Linear], channels: Survey) -> Carried | str:
    if any(r.node.op_type == "Conv" for r in readers):
        return "channels of a convolution do not stand on the last axis"
    nodes = {r.node for r in readers}
    other = next((u.node for u in value.uses() if u.node not in nodes), None)
    if other is not None:
        return f"{other.op_type} {other.name!r} reads {value.name!r} too"
    carried = follow(channels, value)
    if carried.blocks:
        return f"{carried.blocks[0].where}: {carried.blocks[0].why}"
    spread = len(np.unique(carried.alike)) < len(carried.alike)
    if spread and any(w.node.op_type in ("Conv", "BatchNormalization") for w in carried.writers):
        return "several of its places are one channel of a map"
    return carried if carried.writers else f"no constant makes the channels of {value.name!r}"
