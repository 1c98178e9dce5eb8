"""Minimum cut of a small directed graph, by augmenting paths (Ford and Fulkerson 1956)."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from typing import TypeAlias

Arcs: TypeAlias = dict[Hashable, dict[Hashable, float]]
FOREVER = float("inf")


class Network:
    """Directed arcs with capacities; ``source`` and ``sink`` may be any hashable values."""

    def __init__(self, source: Hashable, sink: Hashable) -> None:
        self.source, self.sink = source, sink
        self._left: Arcs = defaultdict(dict)

    def arc(self, tail: Hashable, head: Hashable, capacity: float = FOREVER) -> None:
        """Add capacity from ``tail`` to ``head``; arcs out of the sink or into the source bind nothing."""
        if tail != head and tail != self.sink and head != self.source:
            self._left[tail][head] = self._left[tail].get(head, 0) + capacity
            self._left[head].setdefault(tail, 0)

    def sink_side(self) -> set[Hashable]:
        """The smallest sink side of a minimum cut.

        Each arc out of the source is exhausted once: what cannot reach the sink now never will, as nothing enters a set
        of nodes that no path leaves. So the work stays within the part of the graph that a path runs through.
        """
        for start in list(self._left[self.source]):
            while path := self._path(start):
                self._augment([self.source, *path])
        return _reach(self.sink, _reversed(self._left))

    def _path(self, start: Hashable) -> list[Hashable] | None:
        if self._left[self.source][start] <= 0:
            return None
        came: dict[Hashable, Hashable] = {self.source: None, start: None}
        pending = [start]
        while pending:
            node = pending.pop()
            if node == self.sink:
                return _trail(came, node)
            for head, capacity in self._left[node].items():
                if capacity > 0 and head not in came:
                    came[head] = node
                    pending.append(head)
        return None

    def _augment(self, path: list[Hashable]) -> None:
        steps = list(itertools.pairwise(path))
        flow = min(self._left[a][b] for a, b in steps)
        if flow == FOREVER:
            raise ValueError("no cut separates source from sink")
        for a, b in steps:
            self._left[a][b] -= flow
            self._left[b][a] += flow


def _trail(came: Mapping[Hashable, Hashable], end: Hashable) -> list[Hashable]:
    trail = [end]
    while came[trail[-1]] is not None:
        trail.append(came[trail[-1]])
    return trail[::-1]


def _reversed(arcs: Arcs) -> Arcs:
    back: Arcs = defaultdict(dict)
    for tail, heads in arcs.items():
        for head, capacity in heads.items():
            if capacity > 0:
                back[head][tail] = capacity
    return back


def _reach(start: Hashable, arcs: Arcs) -> set[Hashable]:
    seen, pending = {start}, [start]
    while pending:
        fresh: Iterable[Hashable] = arcs.get(pending.pop(), {}).keys() - seen
        seen.update(fresh)
        pending.extend(fresh)
    return seen
