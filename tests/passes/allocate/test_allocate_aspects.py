"""Operators judged by metrics of their own: parts of the budget are kept exactly, units do not count, bad input."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from graphpress.contracts import PassReport
from graphpress.errors import BadRequest, GraphpressError
from graphpress.passes.allocate.allocate import Allocate
from graphpress.passes.allocate.aspects import Aspect, Judge
from graphpress.passes.allocate.problem import Candidate, Problem, Share, Variable
from graphpress.passes.allocate.solve import Infeasible, solve
from tests import kit
from tests.passes import allocating

Outputs = Mapping[str, np.ndarray]


def power(before: Outputs, after: Outputs) -> float:
    """Of the difference, as a share."""
    return float(sum(((after[n] - x) ** 2).sum() / (x**2).sum() for n, x in before.items()))


def louder(before: Outputs, after: Outputs) -> float:
    return 1e6 * power(before, after)


def blind(before: Outputs, after: Outputs) -> float:
    return -1.0  # the rewritten model is better: nothing lost


def broken(before: Outputs, after: Outputs) -> float:
    raise ZeroDivisionError("no text")


def nan(before: Outputs, after: Outputs) -> float:
    return float("nan")


NOTHING = 3.0
HERE = __name__


def drawn(seed: int) -> Problem:
    """Six variables of three formats, two thirds of them in two shares."""
    rng = np.random.default_rng(seed)
    variables = []
    for i in range(6):
        size = float(rng.integers(50, 200))
        loss = np.sort(rng.random(2))
        rows = [Candidate("a", loss[0], -0.6 * size), Candidate("b", loss[1], -0.8 * size)]
        variables.append(Variable(f"v{i}", (f"v{i}",), (Candidate("float"), *rows), size=size))
    made = tuple(variables)
    shares = tuple(Share(n, m, sum(made[i].size for i in m)) for n, m in (("text", (0, 2)), ("picture", (1, 3, 4))))
    return Problem(made, size=sum(v.size for v in made) + 30.0, shares=shares)


def keeps(p: Problem, chosen: tuple[int, ...], budget: float) -> bool:
    """By the definition: of what the bytes outside leave, each share as much as of the bytes in float."""
    inside = sum(s.size for s in p.shares)
    ratio = (budget - (p.size - inside)) / inside
    used = [sum(p.variables[i].size + p.variables[i].choices[chosen[i]].size for i in s.members) for s in p.shares]
    whole = p.size + sum(v.choices[c].size for v, c in zip(p.variables, chosen, strict=True))
    return whole <= budget and all(u <= ratio * s.size for u, s in zip(used, p.shares, strict=True))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_best_plan_in_which_each_keeps_its_part_and_never_worse_with_more(seed: int) -> None:
    p, drops = drawn(seed), []
    for share in (0.45, 0.5, 0.6, 0.7, 0.85, 1.0):
        budget = share * p.size
        every = [c for c in itertools.product(range(3), repeat=6) if keeps(p, c, budget)]
        if not every:
            with pytest.raises(Infeasible, match="is the least"):
                solve(p, "drop", {"size": budget})
            continue
        answer = solve(p, "drop", {"size": budget})
        assert keeps(p, answer.chosen, budget) and p.within(answer.chosen, {"size": budget})
        best = min(p.totals(c).drop for c in every)
        assert answer.totals.drop == pytest.approx(best, abs=1e-9)
        drops.append(best)
    assert len(drops) >= 4 and drops == sorted(drops, reverse=True) and drops[0] > drops[-1] == 0


def run(**options: Any) -> PassReport:
    step = Allocate(**{"formats": ("w8a16", "w4a16-asym"), "samples": 4, "measure": 1, "usual_size": "0.3x", **options})
    ctx = allocating.context(allocating.images(), deploy=False, torch=False)
    return kit.apply(allocating.residual(), step, ctx=ctx)[1][0]


TWO = {"re:stem|first|second": f"{HERE}:power", "head": "y"}


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_losses_are_shares_of_the_worst_whatever_their_unit(unit: float) -> None:
    plain = drawn(0)
    far = [replace(c, drop=unit * c.drop) for c in plain.variables[0].choices]
    scaled = replace(plain, variables=(replace(plain.variables[0], choices=tuple(far)), *plain.variables[1:]))
    judge = Judge(
        (Aspect("text", "divergence", frozenset({"v0"})), Aspect("rest", "divergence", frozenset({"v1", "v2"})))
    )
    found = [judge.decoupled(p)[1] for p in (plain, scaled)]
    for v, w in zip(found[0].variables, found[1].variables, strict=True):
        assert [c.drop for c in v.choices] == pytest.approx([c.drop for c in w.choices])
    assert max(c.drop for c in found[0].variables[0].choices) == 1
    assert sum(max(c.drop for c in v.choices) for v in found[0].variables[1:3]) == pytest.approx(1)
    assert [(s.name, s.members) for s in found[0].shares] == [("text", (0,)), ("rest", (1, 2))]


@pytest.mark.slow
def test_the_unit_of_a_metric_does_not_count_and_each_keeps_its_part() -> None:
    reports = [run(ties=(), metrics=TWO | {"re:stem|first|second": f"{HERE}:{m}"}) for m in ("power", "louder")]
    plans = [r.plan for r in reports]
    assert plans[0] is not None and plans[0] == plans[1]
    assert reports[0].metrics["divergence"] == pytest.approx(reports[1].metrics["divergence"])
    assert 0 < reports[0].metrics["divergence predicted"] <= 2  # two shares of the worst
    assert plans[0].of("head")  # which a budget of the whole would leave in float: it is a hundredth of the bytes
    plain = run(ties=())
    assert plain.plan is not None and not plain.plan.of("head")


@pytest.mark.slow
def test_what_a_metric_does_not_see_costs_nothing() -> None:
    report = run(ties=(), metrics={"*": f"{HERE}:blind"})
    assert report.metrics["divergence predicted"] == report.metrics["divergence"] == 0.0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"metrics": {"relu0": "divergence"}}, "is empty: no operator there has a format"),
        ({"metrics": {"nobody": "divergence"}}, "matches no node"),
        ({"metrics": {"kind:cross": "y"}}, "no such kind of layers.*cross-attention"),
        ({"metrics": {"kind:feed-forward": "y"}}, "is empty: no operator there has a format"),
        ({"metrics": {"stem": "z"}}, "no metric 'z'.*module:function"),
        ({"metrics": {"stem": f"{HERE}:nowhere"}}, "has no 'nowhere'"),
        ({"metrics": {"stem": f"{HERE}:NOTHING"}}, "cannot be called"),
        ({"metrics": {"stem": f"{HERE}:broken"}}, "raises ZeroDivisionError: no text"),
        ({"metrics": {"stem": f"{HERE}:nan"}}, "gives nan"),
        ({"metrics": {"stem": "y", "st*": "divergence"}}, "'stem' is in another one too"),
        ({"metrics": {"stem": "y"}, "ties": ("scales", "weights", "inputs", "residual")}, "are decided together"),
        ({"metrics": {"stem": "y"}, "sensitivity": "fisher"}, "Set sensitivity to kl"),
        ({"metrics": {"stem": "y"}, "max_drop": 0.1}, "no common unit"),
    ],
)
def test_one_clear_error(options: dict[str, Any], why: str) -> None:
    with pytest.raises(GraphpressError, match=why) as caught:
        run(**{"ties": (), **options})
    assert isinstance(caught.value, BadRequest) or "nowhere" in why
