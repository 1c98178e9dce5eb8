"""Which channels of a graph may change places, found by data flow.

Every channel that an operator with weights makes is an *atom*. What reads, adds, scales or moves channels hands the
atoms on, so the atoms of siblings (all readers of a value) and coparents (all producers joined by Add) become one.
Every place where atoms stand is an *event*; two atoms that stand in the same events, equally often, may change places:
then every constant that is indexed by channels, a *port*, changes its order along, and nothing else does. What
tells channels apart by their place (attention heads, groups, unknown operators, the model's outputs) is an event of its
own for each atom, or each slice of atoms, that must stay together.

Only the main graph is followed; what a body of If, Loop or Scan reads stays in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphpress.passes.structure.channels.channel_reshape import Dim


@dataclass(frozen=True, eq=False)
class Port:
    """A constant input whose elements belong to channels.

    Attributes:
        node, slot: The input.
        atoms: Of the rank of the constant; 1 along axes that channels do not vary on.
        reads: Whether a layer multiplies incoming channels with it (the reduction axis of a weight).
    """

    node: ir.Node
    slot: int
    atoms: np.ndarray
    reads: bool = False


@dataclass
class Channels:
    """Atoms of a graph, filled by ``channel_flow.follow``.

    Attributes:
        ports: Constants that follow the order of channels.
        stuck: Atoms that stay in place, and what holds them there.
    """

    ports: list[Port] = field(default_factory=list)
    stuck: list[tuple[np.ndarray, str]] = field(default_factory=list)
    _events: list[tuple[np.ndarray, np.ndarray | None]] = field(default_factory=list)
    _parent: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def fresh(self, shape: Sequence[int]) -> np.ndarray:
        """New atoms of this shape."""
        count = int(np.prod(shape))
        start = len(self._parent)
        self._parent = np.append(self._parent, np.arange(start, start + count))
        return np.arange(start, start + count).reshape(shape)

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        """Atoms at equal places (numpy's broadcasting) are one from now on."""
        if a.shape == b.shape and np.array_equal(a, b):
            return
        for x, y in zip(*(v.ravel().tolist() for v in np.broadcast_arrays(a, b)), strict=True):
            x, y = self._root(x), self._root(y)
            self._parent[max(x, y)] = min(x, y)

    def _root(self, atom: int) -> int:
        while (parent := int(self._parent[atom])) != atom:
            self._parent[atom] = self._parent[parent]
            atom = parent
        return atom

    def stand(self, atoms: np.ndarray, labels: np.ndarray | None = None) -> None:
        """Atoms stand somewhere; only those under the same label (broadcast; None: all) may change places."""
        self._events.append((atoms, labels))

    def hold(self, atoms: np.ndarray, why: str) -> None:
        """Atoms that must stay where they are."""
        self.stuck.append((atoms, why))
        self.stand(atoms, np.arange(atoms.size).reshape(atoms.shape))

    def roots(self) -> np.ndarray:
        """For every atom the one that stands for all joined with it."""
        found = self._parent
        while not np.array_equal(found, found[found]):
            found = found[found]
        return found

    def signatures(self) -> np.ndarray:
        """For every root a number; equal where all events are."""
        roots, rng = self.roots(), np.random.default_rng(0)
        found = np.zeros(len(roots), np.uint64)
        for atoms, labels in self._events:
            spread = np.zeros(1, np.int64) if labels is None else labels
            atoms, spread = np.broadcast_arrays(atoms, spread)
            keys = rng.integers(0, 2**64, size=int(spread.max(initial=0)) + 1, dtype=np.uint64)
            with np.errstate(over="ignore"):
                np.add.at(found, roots[atoms.ravel()], keys[spread.ravel()])
        return found

    def groups(self) -> list[np.ndarray]:
        """Sets of two or more root atoms that may change places, each in rising order."""
        roots, signatures = self.roots(), self.signatures()
        heads = np.unique(roots)
        _, inverse, counts = np.unique(signatures[heads], return_inverse=True, return_counts=True)
        found = [heads[inverse == k] for k in np.flatnonzero(counts > 1)]
        return sorted(found, key=lambda g: int(g[0]))

    def why_stuck(self, atoms: np.ndarray) -> str:
        """What holds these atoms in place."""
        roots = self.roots()
        wanted = np.unique(roots[atoms.ravel()])
        for held, why in self.stuck:
            if np.isin(roots[held.ravel()], wanted).any():
                return why
        return "no two of its channels come and go the same way"


@dataclass
class Flow:
    """The atoms of each value while a graph is followed: of its rank, 1 along axes that they do not vary on."""

    channels: Channels = field(default_factory=Channels)
    atoms: dict[ir.Value, np.ndarray] = field(default_factory=dict)

    def of(self, node: ir.Node, slot: int = 0) -> np.ndarray | None:
        """The atoms of an input, or None."""
        value = node.inputs[slot] if slot < len(node.inputs) else None
        return None if value is None else self.atoms.get(value)

    def give(self, node: ir.Node, atoms: np.ndarray | None) -> None:
        """The atoms of the first output."""
        if atoms is not None and atoms.size > 1:
            self.atoms[node.outputs[0]] = atoms

    def hold(self, node: ir.Node, why: str = "") -> None:
        """All channels that the node reads stay in place."""
        for value in node.inputs:
            if value is not None and value in self.atoms:
                self.channels.hold(self.atoms[value], why or f"{node.op_type} {node.name!r} reads them by their place")

    def apart(self, atoms: np.ndarray, axes: list[int]) -> None:
        """Channels change places only within equal indices of these axes."""
        sizes = [n if a in axes else 1 for a, n in enumerate(atoms.shape)]
        if int(np.prod(sizes)) > 1:
            self.channels.stand(atoms, np.arange(int(np.prod(sizes))).reshape(sizes))

    def port(self, node: ir.Node, slot: int, atoms: np.ndarray, reads: bool = False) -> None:
        """A constant input that follows the order of these atoms."""
        self.channels.ports.append(Port(node, slot, atoms, reads))
        self.channels.stand(atoms)


def shape_of(value: ir.Value | None) -> list[Dim] | None:
    """Sizes, or names of such as are not known."""
    if value is None or value.shape is None:
        return None
    return [d if isinstance(d, int) else f"{d}" if d.value is not None else f"?{i}" for i, d in enumerate(value.shape)]


def varying(atoms: np.ndarray) -> list[int]:
    """Axes along which there are several."""
    return [a for a, n in enumerate(atoms.shape) if n > 1]
