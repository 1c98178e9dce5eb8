"""The values that a move changes together with one of them, and the constants around them: a question to a survey."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from graphpress.contracts import Skip
from graphpress.passes.structure.channels.lanes import (
    Lanes,
    along,
    components,
    covers,
    on_one_axis,
    size,
    slim,
    told_apart,
)
from graphpress.passes.structure.channels.moves import FACTOR, READER, WRITER, Holder
from graphpress.passes.structure.channels.survey import Survey
from graphpress.passes.structure.layers.norms import Norm


@dataclass(eq=False)
class Carried:
    """A class of values tied by operators that let a move pass.

    Attributes:
        members: Each value and where the channels are in it, numbered as along the axis that was asked for: number
            ``extent * r + i`` is the i-th of run r; -1 is an element that is no part.
        holders: The constants that write and read the channels.
        norms: Norm sites in it, by the way they were met: ``input`` (reads the channels) or ``output`` (makes them).
        blocks: What keeps the class as it is.
        passed: Operators that tie two values, in the order of the graph.
        alike: For each channel the one that stands for all that must move as it does.
        extent: Channels that mix with one another.
    """

    members: dict[ir.Value, Lanes] = field(default_factory=dict)
    holders: list[Holder] = field(default_factory=list)
    norms: dict[Norm, set[str]] = field(default_factory=dict)
    blocks: list[Skip] = field(default_factory=list)
    passed: dict[ir.Node, None] = field(default_factory=dict)
    alike: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    extent: int = 1

    def side(self, side: str) -> list[Holder]:
        """Its writers or its readers, without the biases of layers."""
        return [h for h in self.holders if h.side == side and not h.bias]

    @property
    def writers(self) -> list[Holder]:
        return self.side(WRITER)

    @property
    def readers(self) -> list[Holder]:
        return self.side(READER)

    def block(self, where: ir.Node | ir.Value | None, why: str) -> None:
        skip = Skip((where.name if where is not None else None) or "?", why)
        if skip not in self.blocks:
            self.blocks.append(skip)


def follow(found: Survey, seed: ir.Value, axis: int = -1, extent: int | None = None) -> Carried:
    """The class of a value.

    Args:
        found: The channels of its graph, for the move that is meant. For a factor nothing else may read a value on the
            way from the seed to what makes it.
        seed: The value to begin with.
        axis: Of its channels.
        extent: Neighbours that mix with one another in a rotation; None: all of the axis.
    """
    count = size(seed, axis) or 0
    extent = 1 if found.move in FACTOR else extent or count
    lanes, own = along(np.arange(count), axis, len(seed.shape or [0])), found.lanes.get(seed)
    carried = Carried(alike=np.arange(count), extent=extent)
    if not count or count % extent:
        carried.block(seed, f"the size of the channels of {seed.name!r} is unknown, or is no multiple of {extent}")
    if own is None:
        carried.block(*found.missing(seed))
    if own is None or carried.blocks:
        return carried
    at, wanted = (a.ravel() for a in np.broadcast_arrays(found.roots[own], lanes))
    number = np.full(len(found.roots), -1)
    number[at[::-1]] = wanted[::-1]
    carried.alike = components(count, [(number[at], wanted)])
    if ((carried.alike - np.arange(count)) % extent).any():
        carried.block(seed.producer(), f"{seed.name!r} holds the channels in two places at once")
    number = np.where(number < 0, -1, carried.alike[number])[found.roots]
    carried.members = {v: slim(number[at]) for v, at in found.lanes.items() if (number[at] >= 0).any()}
    held = [replace(h, lanes=slim(number[h.lanes])) for h in found.holders.values()]
    carried.holders = [h for h in held if (h.lanes >= 0).any()]
    for node in [v.producer() for v in carried.members]:
        if node is not None and any(v in carried.members for v in node.inputs):
            carried.passed[node] = None
    if found.move in FACTOR:
        _check_alone(carried, seed)
    _check_runs(carried, found, told_apart(number, extent) if extent > 1 else number)
    return carried


def _check_runs(carried: Carried, found: Survey, number: np.ndarray) -> None:
    """What holds channels, tells those that mix apart, or has a part of them only."""
    for value in carried.members:
        if not on_one_axis(number[found.lanes[value]], carried.extent):
            op = node.op_type if (node := value.producer()) is not None else "it"
            why = f"{op} picks single channels, or breaks up the channels that mix: a part is cut off"
            carried.block(value.producer(), why)
    for event in found.events:
        lanes = number[event.lanes]
        if event.why and (lanes >= 0).any() and not (event.free and on_one_axis(lanes, carried.extent, event.free)):
            carried.block(event.where, event.why)
    for norm, end, at in found.sites:
        if (number[at] >= 0).any() and covers(number[at], norm.input, -1) and at.size == carried.extent:
            carried.norms.setdefault(norm, set()).add(end)
        elif (number[at] >= 0).any():
            carried.block(norm.node, "it normalizes over other axes than these channels")


def _check_alone(carried: Carried, seed: ir.Value) -> None:
    """Nothing but the way to the seed may read the members."""
    way = {seed}
    for value in reversed(carried.members):
        if any(out in way for user, _ in value.uses() for out in user.outputs):
            way.add(value)
    others = carried.members.keys() - way
    for value in carried.members:
        outs = [out for user, _ in value.uses() for out in user.outputs]
        if value in way and (value.is_graph_output() or any(out in others for out in outs)):
            carried.block(value, f"{value.name!r} is an output of the graph, or others read it too")


def by_node(norms: Iterable[Norm]) -> dict[ir.Node, Norm]:
    """Each node that is part of a norm site, and the site."""
    return {node: norm for norm in norms for node in norm.nodes}
