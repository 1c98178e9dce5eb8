"""Which plan is taken: the search proposes, compiled models decide.

With the loss as objective, plans are searched within the budgets and, as predictions of latency are not exact and
losses do not quite add up, within some a little tighter and looser; uniform formats that fit are tried too. The best
that holds the budgets when measured is taken. With the loss as budget, the divergence allowed in the search is found by
bisection: what compiled plans lose says which way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from graphpress.errors import BadRequest
from graphpress.passes.allocate.problem import Problem
from graphpress.passes.allocate.solve import UNITS, Infeasible, solve
from graphpress.passes.allocate.trial import Bench, Trial

MARGINS = (1.0, 0.96, 1.04, 0.92, 0.88)
LATENCY_NOISE = 1.01  # a measured latency this much over the budget still holds it
_ABOUT = 1.1
_LOWEST = 1e-7  # divergence under which a plan counts as no loss


@dataclass(frozen=True)
class Goal:
    """What is asked for.

    Attributes:
        objective: drop, size or latency: the least of it.
        budgets: Largest size in bytes and latency in ms.
        drop: Largest loss: points of the metric if ``points``, else in the unit of the sensitivity.
        points: There is a metric.
        measure: About how many plans to compile.
        asked: Whether somebody asked for the budgets; a recipe's own are held as far as it goes.
    """

    objective: str
    budgets: Mapping[str, float]
    drop: float | None
    points: bool
    measure: int
    asked: bool = True

    def holds(self, trial: Trial) -> bool:
        """Whether a compiled plan keeps all budgets."""
        got, budgets = trial.measured, self.budgets
        latency = got.latency <= budgets.get("latency", math.inf) * LATENCY_NOISE
        return latency and got.size <= budgets.get("size", math.inf) and self.holds_drop(trial)

    def holds_drop(self, trial: Trial) -> bool:
        """Whether it loses no more than allowed."""
        if self.drop is None:
            return True
        lost = trial.lost if self.points else trial.measured.drop
        return lost is not None and lost <= self.drop + 1e-9

    def value(self, trial: Trial) -> tuple[float, float]:
        """What is to be least, then the loss."""
        return trial.measured.get(self.objective), trial.measured.drop


class Missed(BadRequest):
    """No compiled plan keeps the budgets."""


def choose(bench: Bench, goal: Goal) -> Trial:
    """The best compiled plan that holds the budgets, or one of about the least size where nobody asked for them.

    Raises:
        BadRequest: None does; the message has the tightest that was reached, predicted or measured.
    """
    try:
        return _best(bench, goal)
    except (Infeasible, Missed):
        if goal.asked:
            raise
    return _about_smallest(bench)


def _about_smallest(bench: Bench) -> Trial:
    """Of the plans up to a tenth above the smallest, the one that loses least."""
    least = solve(bench.problem, "size", {})
    bench.run(least.chosen)
    _try(bench, "drop", {"size": least.totals.size * _ABOUT})
    trials = list(bench.trials.values())
    bound = min(t.measured.size for t in trials) * _ABOUT
    return min((t for t in trials if t.measured.size <= bound), key=lambda t: t.measured.drop)


def _best(bench: Bench, goal: Goal) -> Trial:
    if goal.objective == "drop" or goal.drop is None:
        _around(bench, goal)
    else:
        _bisect(bench, goal)
    good = [t for t in bench.trials.values() if goal.holds(t)]
    if not good:
        raise _missed(bench, goal)
    return min(good, key=goal.value)


def _around(bench: Bench, goal: Goal) -> None:
    """Solve within the budgets, and a little beside them, until enough plans are compiled and one holds."""
    drop = {} if goal.drop is None or goal.points else {"drop": goal.drop}
    budgets = {**goal.budgets, **drop}
    bench.run(solve(bench.problem, goal.objective, budgets).chosen)
    for chosen in _uniform(bench.problem):
        if bench.problem.within(chosen, budgets):
            bench.run(chosen)
    count = len(bench.trials) - 1
    for margin in MARGINS[1:] if budgets else ():
        if len(bench.trials) - count >= goal.measure and any(goal.holds(t) for t in bench.trials.values()):
            return
        _try(bench, goal.objective, {k: b * margin for k, b in budgets.items()})
    for _ in range(3):  # predicted too low: ask for as much less
        if any(goal.holds(t) for t in bench.trials.values()):
            return
        over = {k: _over(bench, k, b) for k, b in budgets.items()}
        _try(bench, goal.objective, {k: b / max(over[k], 1.0) for k, b in budgets.items()})


def _uniform(problem: Problem) -> Iterator[list[int]]:
    """One format everywhere it can be, for each format; operators without weights with the majority."""
    named = [[c.format for c in v.choices] for v in problem.variables]
    for name in dict.fromkeys(
        n for v, names in zip(problem.variables, named, strict=True) if not v.free for n in names
    ):
        integers = any(c.gives for v in problem.variables if not v.free for c in v.choices if c.format == name)
        pairs = zip(problem.variables, named, strict=True)
        yield [int(integers) if v.free else (names.index(name) if name in names else 0) for v, names in pairs]


def _over(bench: Bench, kind: str, budget: float) -> float:
    """How far the nearest trial so far lies above what it was predicted to be."""
    nearest = min(bench.trials.values(), key=lambda t: abs(t.measured.get(kind) - budget))
    predicted = nearest.predicted.get(kind)
    return nearest.measured.get(kind) / predicted if predicted > 0 else 1.0


def _try(bench: Bench, objective: str, budgets: Mapping[str, float]) -> Trial | None:
    try:
        return bench.run(solve(bench.problem, objective, budgets).chosen)
    except Infeasible:
        return None


def _bisect(bench: Bench, goal: Goal) -> None:
    """Find the largest divergence allowed in the search whose plan, compiled, loses no more than it may.

    Uniform formats are tried whatever is predicted of their loss: losses do not quite add up.
    """
    lowest = solve(bench.problem, "drop", goal.budgets).totals.drop
    cheapest = solve(bench.problem, goal.objective, goal.budgets)
    if goal.holds_drop(bench.run(cheapest.chosen)):
        return
    for chosen in _uniform(bench.problem):
        if bench.problem.within(chosen, goal.budgets):
            bench.run(chosen)
    low, high = max(lowest, _LOWEST), max(cheapest.totals.drop, _LOWEST)
    at = math.sqrt(low * high) if goal.points or goal.drop is None else min(max(goal.drop, low), high)
    for _ in range(max(goal.measure, 5)):
        trial = _try(bench, goal.objective, {**goal.budgets, "drop": at})
        if trial is not None and goal.holds_drop(trial):
            low = at
        else:
            high = at
        at = math.sqrt(low * high)
    if not any(goal.holds(t) for t in bench.trials.values()):
        _try(bench, "drop", goal.budgets)


def _missed(bench: Bench, goal: Goal) -> Missed:
    trials = list(bench.trials.values())
    said = []
    for kind, budget in goal.budgets.items():
        least = min(t.measured.get(kind) for t in trials)
        if least > budget:
            said.append(f"{kind} {budget:.6g}{UNITS[kind]} asked, {least:.6g}{UNITS[kind]} is the least measured")
    if goal.drop is not None and not any(goal.holds_drop(t) for t in trials):
        least = min((t.lost if goal.points and t.lost is not None else t.measured.drop) for t in trials)
        said.append(f"drop {goal.drop:.6g} asked, {least:.6g} is the least measured within the other budgets")
    what = "; ".join(said) or "each budget is held by some plan, all of them by none"
    return Missed(
        f"no compiled plan keeps the budgets: {what}", where="allocate", fix="Loosen one, or allow more formats."
    )
