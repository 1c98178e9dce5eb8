"""Which channels of a graph may change places or go, found by data flow.

Every channel that an operator with weights makes has a number. What reads, adds, scales or moves channels hands the
numbers on, so the channels of siblings (all readers of a value) and coparents (all producers joined by Add) become one.
Every place where channels stand is an *event*; two channels that stand in the same events, equally often, may change
places: then every constant that is indexed by them changes its order along, and nothing else does. What tells channels
apart by their place (attention heads, groups, unknown operators, the model's outputs) is an event of its own for each.

Only the main graph is followed; what a body of If, Loop or Scan reads stays in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.passes.structure.channels.ask import IN, OUT, READER, Ask, Holder, Move, Said
from graphpress.passes.structure.channels.commuting import answer
from graphpress.passes.structure.channels.lanes import Lanes, along, dims, operand, slim, varying
from graphpress.passes.structure.channels.ledger import Ledger, keep, reorder
from graphpress.passes.structure.layers.linear import FLOATS, Linear, linear


@dataclass
class Survey:
    """Channels of a graph.

    Attributes:
        move: What is to be done to them: ``PERMUTE`` or ``SLICE``.
        lanes: Of each value: where which channels are.
        holders: Constants that change along.
        stuck: Channels that stay, and what holds them.
    """

    move: Move = Move.PERMUTE
    lanes: dict[ir.Value, Lanes] = field(default_factory=dict)
    holders: dict[tuple[ir.Node, int, str], Holder] = field(default_factory=dict)
    stuck: list[tuple[Lanes, str]] = field(default_factory=list)
    _events: list[tuple[Lanes, np.ndarray | None]] = field(default_factory=list)
    _parent: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def readers(self) -> list[Holder]:
        """The weights of layers that sum over channels."""
        return [h for h in self.holders.values() if h.side == READER]

    def fresh(self, shape: Sequence[int]) -> Lanes:
        """New channels of this shape."""
        start, count = len(self._parent), int(np.prod(shape))
        self._parent = np.append(self._parent, np.arange(start, start + count))
        return np.arange(start, start + count).reshape(shape)

    def join(self, a: Lanes, b: Lanes) -> None:
        """Channels at equal places (numpy's broadcasting) are one from now on."""
        if a.shape == b.shape and np.array_equal(a, b):
            return
        for x, y in zip(*(v.ravel().tolist() for v in np.broadcast_arrays(a, b)), strict=True):
            x, y = self._root(x), self._root(y)
            self._parent[max(x, y)] = min(x, y)

    def _root(self, channel: int) -> int:
        while (parent := int(self._parent[channel])) != channel:
            self._parent[channel] = self._parent[parent]
            channel = parent
        return channel

    def stand(self, lanes: Lanes, labels: np.ndarray | None = None) -> None:
        """Channels stand somewhere; only those under the same label (broadcast; None: all) may change places."""
        self._events.append((lanes, labels))

    def apart(self, lanes: Lanes, axes: Sequence[int]) -> None:
        """Channels change places only within equal indices of these axes."""
        sizes = [n if a in axes else 1 for a, n in enumerate(lanes.shape)]
        if int(np.prod(sizes)) > 1:
            self.stand(lanes, np.arange(int(np.prod(sizes))).reshape(sizes))

    def hold(self, lanes: Lanes, why: str) -> None:
        """Channels that must stay where they are."""
        self.stuck.append((lanes, why))
        self.stand(lanes, np.arange(lanes.size).reshape(lanes.shape))

    def roots(self) -> np.ndarray:
        """For every channel the one that stands for all joined with it."""
        found = self._parent
        while not np.array_equal(found, found[found]):
            found = found[found]
        return found

    def groups(self) -> list[np.ndarray]:
        """Sets of two or more channels (roots) that may change places, each in rising order."""
        roots, rng = self.roots(), np.random.default_rng(0)
        seen = np.zeros(len(roots), np.uint64)  # equal where all events are
        for lanes, labels in self._events:
            at, spread = np.broadcast_arrays(lanes, np.zeros(1, np.int64) if labels is None else labels)
            keys = rng.integers(0, 2**64, size=int(spread.max(initial=0)) + 1, dtype=np.uint64)
            with np.errstate(over="ignore"):
                np.add.at(seen, roots[at.ravel()], keys[spread.ravel()])
        heads = np.unique(roots)
        _, inverse, counts = np.unique(seen[heads], return_inverse=True, return_counts=True)
        found = [heads[inverse == k] for k in np.flatnonzero(counts > 1)]
        return sorted(found, key=lambda g: int(g[0]))

    def why_stuck(self, lanes: Lanes) -> str:
        """What holds these channels in place."""
        roots = self.roots()
        wanted = np.unique(roots[lanes.ravel()])
        held = (why for at, why in self.stuck if np.isin(roots[at.ravel()], wanted).any())
        return next(held, "no two of its channels come and go the same way")

    def visit(self, node: ir.Node) -> None:
        """Hand channels on through one node, and number those that it makes."""
        untold = False
        for slot, value in enumerate(node.inputs):
            if value is not None and (lanes := self.lanes.get(value)) is not None:
                said = answer(Ask(node, (IN, slot), lanes, self.move))
                if isinstance(said, str):
                    self.hold(lanes, f"{node.op_type} {node.name!r}: {said}")
                else:
                    self.take(node, said)
                    untold = untold or not said.free
        for out in node.outputs:
            if (lanes := self.lanes.get(out)) is not None and (lanes < 0).any():
                self.fill(out, lanes, held=untold)
        if node.outputs[0] not in self.lanes and (made := self.made(node)) is not None:
            said = answer(Ask(node, (OUT, 0), made, self.move))
            if isinstance(said, Said):
                self.take(node, said)
            self.lanes[node.outputs[0]] = made

    def take(self, node: ir.Node, said: Said) -> None:
        for holder in said.held:
            self.holds(holder)
        for lanes, axes in said.apart:
            self.apart(lanes, axes)
        for (kind, slot), lanes in said.ties.items():
            value = (node.inputs if kind == IN else node.outputs)[slot]
            if value is None:
                continue
            known = self.lanes.get(value)
            if kind == IN and edit.is_constant(value):
                self.holds(Holder(node, slot, lanes))
            elif known is not None:
                self.lanes[value] = self.merged(node, known, lanes)
            elif kind == IN:  # computed, and without channels of its own
                self.apart(lanes, varying(lanes))
            elif lanes.size > 1 and (lanes >= 0).any():
                self.lanes[value] = slim(lanes)

    def merged(self, node: ir.Node, known: Lanes, new: Lanes) -> Lanes:
        if known.shape != new.shape:
            for lanes in (known, new):
                self.hold(lanes[lanes >= 0], f"{node.op_type} {node.name!r}: it joins channels of different axes")
            return known
        both = (known >= 0) & (new >= 0)
        self.join(known[both], new[both])
        return np.where(known < 0, new, known)

    def fill(self, out: ir.Value, lanes: Lanes, held: bool) -> None:
        """Number what nobody numbered: padding, or what is joined and comes from elsewhere (which stays)."""
        made = self.fresh([int((lanes < 0).sum())])
        if held:
            self.hold(made, f"{out.name!r} joins channels with something else")
        self.lanes[out] = lanes = lanes.copy()
        lanes[lanes < 0] = made

    def holds(self, holder: Holder) -> None:
        value = holder.node.inputs[holder.slot]
        assert value is not None
        if operand(holder.lanes, value)[1]:  # one number for all
            return
        if (holder.node, holder.slot, holder.side) not in self.holders:
            self.holders[holder.node, holder.slot, holder.side] = holder
            self.stand(holder.lanes)

    def made(self, node: ir.Node) -> Lanes | None:
        """Numbers for what a layer, a table or a constant that is spread out makes."""
        out, rank = node.outputs[0], len(dims(node.outputs[0]) or ())
        if not rank or node.domain != "" or not out.uses():
            return None
        view = linear(node) if node.op_type in ("MatMul", "Gemm", "Conv") else ""
        axis = 1 if node.op_type == "Conv" else rank - 1
        width = view.shape[0] if isinstance(view, Linear) else 1
        if node.op_type in ("Gather", "Expand"):
            width = _last(node)
        return along(self.fresh([width]), axis, rank) if width > 1 else None


def _last(node: ir.Node) -> int:
    """The size of the last axis of a constant of floats that Gather reads as rows, or Expand spreads out."""
    tensor = edit.constant_tensor(node.inputs[0])
    if tensor is None or tensor.dtype not in FLOATS or not len(tensor.shape):
        return 1
    depth = len(tensor.shape)
    rows = node.op_type != "Gather" or (depth > 1 and int(edit.attribute(node, "axis", 0)) % depth != depth - 1)
    return int(tensor.shape.numpy()[-1]) if rows else 1


def survey(model: ir.Model, move: Move = Move.PERMUTE) -> Survey:
    """The channels of a model's main graph."""
    found = Survey(move)
    for node in model.graph:
        found.visit(node)
    for value, lanes in found.lanes.items():
        found.stand(lanes)
        if value.is_graph_output():
            found.hold(lanes, "the caller of the model reads them")
        elif any(u.node.graph is not model.graph for u in value.uses()):
            found.hold(lanes, "a body of If, Loop or Scan reads them")
    return found


def permute(found: Survey, new: np.ndarray) -> int:
    """Let every constant follow ``new``: for each root the one that takes its places. Returns how many changed."""
    roots, ledger, change = found.roots(), Ledger(), reorder(new)
    for holder in found.holders.values():
        lanes = roots[holder.lanes]
        if (new[lanes] != lanes).any():
            ledger.add(replace(holder, lanes=lanes), change)
    return ledger.write(equal=False)


def narrow(found: Survey, kept: np.ndarray) -> int:
    """Keep the channels that are marked (of each root), and forget the sizes of values that lose some.

    Args:
        found: Made for ``Move.SLICE``.
        kept: Booleans by channel; only members of ``groups`` may go.
    """
    roots, ledger, change = found.roots(), Ledger(), keep(kept)
    for holder in found.holders.values():
        lanes = roots[holder.lanes]
        if not kept[lanes].all():
            ledger.add(replace(holder, lanes=lanes), change)
    for value, lanes in found.lanes.items():
        if not kept[roots[lanes]].all() and value.shape is not None:
            value.shape = ir.Shape([None if a in varying(lanes) else d for a, d in enumerate(value.shape)])
    return ledger.write()
