"""``equalize-layers``: a channel between two layers gets as large in the rows that make it as in the columns behind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.passes.structure.channels.commuting import survey
from graphpress.passes.structure.channels.follow import Carried, follow
from graphpress.passes.structure.channels.ledger import Ledger, factor
from graphpress.passes.structure.channels.moves import WRITER, Holder, Move
from graphpress.passes.structure.channels.survey import Survey
from graphpress.passes.structure.layers.linear import layers
from graphpress.types import Numerics, Stage

SETTLED = 1e-3  # of a factor's distance from 1, below which all has settled


@dataclass(frozen=True)
class EqualizeLayers(Pass):
    """Cross-layer equalization (Nagel et al., Data-free quantization, arXiv:1906.04721, section 4.1), for weights with
    one scale for a whole tensor. Exact in real arithmetic, and needs no data.

    Between a layer and the layers that alone read it, through Relu, LeakyRelu, pools and moves of data, each channel is
    divided by ``s = sqrt(r1 / r2)`` on the one side and multiplied on the other, r1 and r2 its largest weights there:
    both become sqrt(r1 r2). Chains are gone through until nothing changes, so that three layers around a depthwise
    convolution end at the cubic root of all three. Other activations, Relu6 among them, and branches are a Skip.

    Attributes:
        rounds: Through all places, at most.
    """

    rounds: int = 50

    name = "equalize-layers"
    numerics = Numerics.CLOSE
    needs = (Stage.FLOAT,)

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        """Rewrite weights and biases of ``model``.

        Raises:
            BadRequest: ``rounds`` is not positive.
        """
        if self.rounds < 1:
            raise BadRequest(f"{self.rounds} is not positive", where="equalize-layers: option 'rounds'")
        places = [p for g in edit.graphs(model) if isinstance(g, ir.Graph) for p in _places(g, report)]
        for _ in range(self.rounds):
            moved = [place.equalize() for place in ctx.progress(places, "equalize-layers", len(places))]
            if max(moved, default=0.0) < SETTLED:
                break
        report.changed += sum(place.moved for place in places)


@dataclass(eq=False)
class _Place:
    """A value between layers.

    Attributes:
        writers, readers: Their weights.
        carried: All that changes along.
        moved: Whether a factor was written.
    """

    writers: Sequence[Holder]
    readers: Sequence[Holder]
    carried: Carried
    moved: bool = False

    def equalize(self) -> float:
        """Write the factors; the largest distance of one from 1."""
        _, alike = np.unique(self.carried.alike, return_inverse=True)
        r1, r2 = (_of_copies(_largest(h, len(alike)), alike) for h in (self.writers, self.readers))
        alive = (r1 > 0) & (r2 > 0) & np.isfinite(r1) & np.isfinite(r2)
        by = np.where(alive, np.sqrt(r1 / np.where(alive, r2, 1.0)), 1.0)[alike]
        far = float(np.abs(by - 1).max())
        if far < SETTLED:
            return far
        self.moved = True
        ledger, divided, multiplied = Ledger(), factor(by, np.divide), factor(by)
        for holder in self.carried.holders:
            ledger.add(holder, divided if holder.side == WRITER else multiplied)
        ledger.write()
        return far


def _places(graph: ir.Graph, report: PassReport) -> list[_Place]:
    found: Survey | None = None
    seen: set[ir.Value] = set()
    places = []
    for view in layers(list(graph)):
        value = view.input
        if value in seen or value.producer() is None:
            continue
        seen.add(value)
        found = found or survey(graph, Move.SCALE)
        made = _place(value, found, -1 if view.node.op_type != "Conv" else 1)
        if isinstance(made, str):
            report.skip(view.node, made)
        else:
            places.append(made)
    return places


def _place(value: ir.Value, found: Survey, axis: int) -> _Place | str:
    layer = {v.node for v in layers(list(value.consumers()))}
    other = next((u for u in value.consumers() if u not in layer), None)
    if other is not None:
        return f"{other.op_type} {other.name!r} reads {value.name!r} too"
    carried = follow(found, value, axis)
    if carried.blocks:
        return f"{carried.blocks[0].where}: {carried.blocks[0].why}"
    weights = [h for h in carried.writers if not h.summand]
    norm = next((h for h in carried.writers if h.summand and h.node.op_type not in ("Add", "Sub", "Sum")), None)
    if norm is not None:
        return f"{norm.node.op_type} {norm.name!r} makes its channels: smooth is for that"
    if not weights or {h.node for h in carried.readers} != layer:
        return "no layer makes its channels" if not weights else "not all that reads it takes factors up"
    return _Place(weights, carried.readers, carried)


def _largest(holders: Iterable[Holder], count: int) -> np.ndarray:
    """[channels]: the largest magnitude of a weight of each."""
    found = np.zeros(count)
    for holder in holders:
        array = edit.constant(holder.node.inputs[holder.slot])
        assert array is not None
        at, sizes = np.broadcast_arrays(holder.lanes, np.abs(array.astype(np.float64)))
        np.maximum.at(found, at[at >= 0], sizes[at >= 0])
    return found


def _of_copies(largest: np.ndarray, alike: np.ndarray) -> np.ndarray:
    """[channels that differ]: the largest of all copies."""
    found = np.zeros(alike.max() + 1)
    np.maximum.at(found, alike, largest)
    return found
