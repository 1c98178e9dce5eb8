"""Sets of operators that are judged by metrics of their own, each with its share of the budget (ViDiT-Q-MP).

Losses by different metrics have no common unit. Within a set they are compared as they are; beside other sets each is a
share of what the set loses in the worst of its formats, and no set may pay for another: of a budget of size each gets
what its own bytes are worth (arXiv:2406.02540, section 3.4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from graphpress.errors import BadRequest, GraphpressError, nearest
from graphpress.graph import selectors
from graphpress.imported import imported
from graphpress.job.natures import Nature
from graphpress.passes.allocate.divergence import divergence
from graphpress.passes.allocate.evaluated import number
from graphpress.passes.allocate.problem import Problem, Share
from graphpress.passes.allocate.space import Space
from graphpress.passes.structure.layers.kinds import KINDS, kinds

Outputs = Mapping[str, np.ndarray]
OTHERS = "(others)"
ALL = "divergence"
_WHERE = "allocate: option 'metrics'"


@dataclass(frozen=True, eq=False)
class Aspect:
    """Operators and what they are judged by.

    Attributes:
        name: The selector.
        metric: As it was given.
        nodes: The operators.
        distance: Of a user's own metric: of two sets of outputs, by name; 0 where nothing was lost.
        whole: What it loses in the worst of its formats, as the measurements add up; 1: not known yet.
    """

    name: str
    metric: str
    nodes: frozenset[str]
    distance: Callable[[Outputs, Outputs], float] | None = None
    whole: float = 1.0

    def lost(self, before: Outputs, after: Outputs, wanted: Mapping[str, Nature]) -> float:
        """By its metric, in the metric's own unit; what is not among ``after`` did not change.

        Raises:
            BadRequest: It raises, or gives no number.
        """
        if self.distance is None:
            return divergence(before, after, {n: w for n, w in wanted.items() if self.metric in (ALL, n)})
        given = {n: before[n] for n in wanted}
        try:
            value = float(self.distance(given, given | {n: after[n] for n in wanted if n in after}))
        except GraphpressError:
            raise
        except Exception as e:  # the user's own code may raise anything
            where = f"{_WHERE}, {self.metric}"
            raise BadRequest(f"it raises {type(e).__name__}: {e}", where=where, fix="Repair it.") from e
        return max(number(value, self.metric, f"operators {self.name}"), 0.0)


@dataclass(frozen=True)
class Judge:
    """How what operators do to the outputs is judged: all by one divergence, or each by its aspect."""

    aspects: tuple[Aspect, ...] = ()

    def text(self, node: str) -> str:
        """The metric of an operator, where it has one of its own."""
        return next((f" {a.metric}" for a in self.aspects if node in a.nodes), "")

    def one(self, node: str, before: Outputs, after: Outputs, wanted: Mapping[str, Nature]) -> float:
        """What an operator alone loses."""
        for aspect in self.aspects:
            if node in aspect.nodes:
                return aspect.lost(before, after, wanted)
        return divergence(before, after, wanted)

    def whole(self, before: Outputs, after: Outputs, wanted: Mapping[str, Nature]) -> float:
        """What a whole plan loses, in the unit that the search adds up."""
        if not self.aspects:
            return divergence(before, after, wanted)
        return sum(a.lost(before, after, wanted) / a.whole for a in self.aspects)

    def decoupled(self, problem: Problem) -> tuple[Judge, Problem]:
        """The problem with losses as shares of what each aspect can lose, and with a part of the budget for each."""
        aspects, variables, shares = list[Aspect](), list(problem.variables), list[Share]()
        for aspect in self.aspects:
            members = tuple(i for i, v in enumerate(problem.variables) if v.nodes[0] in aspect.nodes)
            lost = sum(max(c.drop for c in problem.variables[i].choices) for i in members)
            aspects.append(replace(aspect, whole=lost or 1.0))
            for i in members:
                choices = (replace(c, drop=c.drop / aspects[-1].whole) for c in variables[i].choices)
                variables[i] = replace(variables[i], choices=tuple(choices))
            shares.append(Share(aspect.name, members, sum(variables[i].size for i in members)))
        return Judge(tuple(aspects)), replace(problem, variables=tuple(variables), shares=tuple(shares))


def read(metrics: Mapping[str, str], space: Space, outputs: Mapping[str, Nature]) -> Judge:
    """What a user asks for: selector -> ``divergence``, the name of an output, or ``module:function``.

    Raises:
        BadRequest: A selector without operators that could be allocated, an operator in two of them, tied ones in
            different ones, or no such metric.
    """
    found, left = list[Aspect](), set(space.own)
    for selector, metric in metrics.items():
        where = f"{_WHERE}: {selector!r}"
        named = _named(selector, space.model.graph) & set(space.own)
        if not named:
            fix = "Select some that have, or leave it out."
            raise BadRequest("is empty: no operator there has a format to choose", where=where, fix=fix)
        if twice := sorted(named - left):
            raise BadRequest(f"{twice[0]!r} is in another one too", where=where, fix="Make them exclude each other.")
        left -= named
        found.append(Aspect(selector, metric, frozenset(named), _distance(metric, outputs, where)))
    if found and left:
        found.append(Aspect(OTHERS, ALL, frozenset(left)))
    _together(found, [g.nodes for g in space.groups])
    return Judge(tuple(found))


def _named(selector: str, graph: ir.Graph) -> set[str]:
    """The nodes of a selector, or of a kind of layers (``kind:cross-attention``)."""
    prefix, _, kind = selector.partition(":")
    if prefix != "kind":
        return {n.name or "" for n in selectors.match(selector, graph, _WHERE)}
    if kind not in KINDS:
        raise BadRequest("no such kind of layers", where=f"{_WHERE}: {selector!r}", fix=nearest(kind, KINDS))
    return {name for name, mine in kinds(graph).items() if mine == kind}


def _distance(metric: str, outputs: Mapping[str, Nature], where: str) -> Callable[[Outputs, Outputs], float] | None:
    if metric == ALL or metric in outputs:
        return None
    if ":" not in metric:
        fix = f"{nearest(metric, [ALL, *outputs])} Or write module:function."
        raise BadRequest(f"there is no metric {metric!r}", where=where, fix=fix)
    made: Callable[[Outputs, Outputs], float] = imported(metric, where)
    if not callable(made):
        raise BadRequest(f"{metric} cannot be called", where=where, fix="Name a function of two sets of outputs.")
    return made


def _together(aspects: Sequence[Aspect], tied: Sequence[tuple[str, ...]]) -> None:
    for nodes in tied:
        mine = [next((a.name for a in aspects if n in a.nodes), "") for n in nodes]
        other = next((i for i, name in enumerate(mine) if name != mine[0]), None)
        if other is not None:
            what = f"{nodes[0]!r} and {nodes[other]!r} are decided together, and lie in {mine[0]!r} and {mine[other]!r}"
            raise BadRequest(what, where=_WHERE, fix="Select both in one, or take their kind out of option 'ties'.")
