"""The exact Pareto front of two costs, by merging one variable at a time and dropping what is dominated.

Both costs are sums over variables, so a partial assignment that is worse in both than another can be dropped as long as
what is still to come is the same for both (ZeroQ, arXiv:2001.00281, section 3.3). Conversions between neighbours make
that true only among assignments with the same kind of values at open links: those are kept apart, as in dynamic
programming over a graph of small width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from graphpress.passes.allocate.problem import OUTSIDE, Candidate, Link, Problem, Totals

LIMIT = 1 << 15  # points kept at a time in all
# Of each open link: its index, what its source gives, the kinds of readers seen or the bytes that they may take.
_State: TypeAlias = tuple[tuple[int, int | None, float], ...]
_FLOATS, _INTEGERS, _JOINED, _SOFT = 1, 2, 4, 8
# What a source gives -> the kinds of readers that cannot stand beside it.
_NEVER = {_FLOATS: _JOINED, _INTEGERS: 0, _SOFT: _JOINED, _JOINED: _FLOATS | _JOINED | _SOFT}


@dataclass(frozen=True)
class Point:
    """A choice for each variable that nothing dominates, and what it costs."""

    chosen: tuple[int, ...]
    totals: Totals


@dataclass
class Front:
    """Points by growing cost and falling drop; ``exact`` unless points had to be thinned out on the way."""

    cost: str
    points: list[Point] = field(default_factory=list)
    exact: bool = True


@dataclass
class _Points:
    """Partial assignments in one state: costs, and where each came from."""

    cost: np.ndarray
    drop: np.ndarray
    trail: np.ndarray  # index into the trails of the last variable


def pareto(problem: Problem, cost: str = "latency", limit: int = LIMIT) -> Front:
    """Every assignment that no other beats in ``cost`` (latency or size) without a larger drop; one of each equal pair.

    Args:
        problem: Variables and links.
        cost: What is traded for accuracy.
        limit: Beyond so many partial assignments, the cost is cut into as many steps and the best of each is kept.
    """
    links = problem.links if cost == "latency" else [x for x in problem.links if any(x.extra)]
    step = _step if cost == "latency" else _step_bytes
    last = {i: max((link.source, *link.readers)) for i, link in enumerate(links)}
    states: dict[_State, _Points] = {(): _Points(np.array([0.0]), np.array([0.0]), np.zeros(1, np.int64))}
    trails: list[tuple[np.ndarray, np.ndarray]] = []
    front = Front(cost)
    for index, variable in enumerate(problem.variables):
        touching = [i for i, link in enumerate(links) if index in (link.source, *link.readers)]
        opened: dict[_State, list[tuple[np.ndarray, np.ndarray, np.ndarray, int]]] = {}
        for state, points in states.items():
            for c, choice in enumerate(variable.choices):
                if cost == "size" and choice.joined:  # its bytes are those of the same format among floats
                    continue
                after, paid = step(state, index, choice, links, touching, last)
                if paid == math.inf:
                    continue
                own = choice.latency if cost == "latency" else choice.size
                opened.setdefault(after, []).append(
                    (points.cost + own + paid, points.drop + choice.drop, points.trail, c)
                )
        share = max(limit // len(opened), 16)
        states, parents, choices, count = {}, [], [], 0
        for after, parts in opened.items():
            merged, exact = _merge(parts, share)
            front.exact &= exact
            parents.append(merged[2])
            choices.append(merged[3])
            states[after] = _Points(merged[0], merged[1], count + np.arange(len(merged[0])))
            count += states[after].cost.size
        trails.append((np.concatenate(parents), np.concatenate(choices)))
    front.points = [Point(c, problem.totals(c)) for c in _follow(_final(states), trails)]
    return front


def _step(
    state: _State,
    index: int,
    choice: Candidate,
    links: Sequence[Link],
    touching: Sequence[int],
    last: dict[int, int],
) -> tuple[_State, float]:
    """The state after a choice, and what the links that it closes cost: infinite, if they are not allowed."""
    known, paid = {i: (gives, int(seen)) for i, gives, seen in state}, 0.0
    for i in touching:
        link = links[i]
        gives, seen = known.pop(i, (_FLOATS if link.source == OUTSIDE else None, _FLOATS * (OUTSIDE in link.readers)))
        if index in link.readers:
            seen |= _kind(choice) if choice.reads else _FLOATS
        if index == link.source:
            gives = _kind(choice) if choice.gives else _FLOATS
        if gives is not None:
            if seen & _NEVER[gives]:
                return (), math.inf
            costly = seen & ~_FLOATS if gives == _FLOATS else seen & _FLOATS  # the others cost nothing any more
            seen = costly and (_INTEGERS if gives == _FLOATS else _FLOATS)
        if last[i] > index:
            known[i] = gives, seen
        elif gives == _FLOATS:
            paid += link.up if seen else 0.0
        else:
            paid += link.down if seen else link.kept
    return tuple((i, gives, seen) for i, (gives, seen) in sorted(known.items())), paid


def _kind(choice: Candidate) -> int:
    """What its codes are to a neighbour."""
    return _JOINED if choice.joined else (_SOFT if choice.soft else _INTEGERS)


def _step_bytes(
    state: _State,
    index: int,
    choice: Candidate,
    links: Sequence[Link],
    touching: Sequence[int],
    last: dict[int, int],
) -> tuple[_State, float]:
    """As ``_step``, for what links take in bytes."""
    known, paid = {i: (gives, waiting) for i, gives, waiting in state}, 0.0
    for i in touching:
        link = links[i]
        gives, waiting = known.pop(i, (0 if link.source == OUTSIDE else None, 0.0))
        if choice.keeps:
            waiting += link.bytes_of(index)
        if index == link.source:
            gives = int(choice.gives)
        if gives is not None:
            paid += waiting if gives else 0.0
            waiting = 0.0
        if last[i] > index:
            known[i] = gives, waiting
    return tuple((i, gives, waiting) for i, (gives, waiting) in sorted(known.items())), paid


def _merge(
    parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, int]], share: int
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], bool]:
    """(cost, drop, trail, choice) of what is not dominated, and whether that is all of it."""
    cost, drop, trail = (np.concatenate([p[k] for p in parts]) for k in range(3))
    choice = np.concatenate([np.full(len(p[0]), p[3]) for p in parts])
    order = np.lexsort((drop, cost))
    lowest = np.minimum.accumulate(drop[order])
    keep = order[np.concatenate([[True], drop[order][1:] < lowest[:-1]])]
    exact = len(keep) <= share
    if not exact:
        steps = np.floor((cost[keep] - cost[keep[0]]) / (np.ptp(cost[keep]) or 1.0) * (share - 1))
        ends = np.concatenate([steps[1:] != steps[:-1], [True]])  # the last of a step has the least drop
        ends[0] = True  # nothing is cheaper
        keep = keep[ends]
    return (cost[keep], drop[keep], trail[keep], choice[keep]), exact


def _final(states: dict[_State, _Points]) -> np.ndarray:
    (points,) = states.values()
    return points.trail


def _follow(trail: np.ndarray, trails: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[tuple[int, ...]]:
    """The choices that led to each last point."""
    columns = []
    for parents, choices in reversed(trails):
        columns.append(choices[trail])
        trail = parents[trail]
    return [tuple(map(int, row)) for row in np.stack(columns[::-1], 1)] if columns else [()]
