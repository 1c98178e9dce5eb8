"""Front and integer program on many small problems against every assignment there is; what a refusal says."""

from __future__ import annotations

import numpy as np
import pytest

from graphpress.passes.allocate import front
from graphpress.passes.allocate.front import pareto
from graphpress.passes.allocate.problem import OUTSIDE, Candidate, Link, Problem, Variable
from graphpress.passes.allocate.solve import Infeasible, solve
from tests.passes.allocate.test_allocate_search import everything, problem, undominated


@pytest.mark.parametrize("cost", ["size", "latency"])
@pytest.mark.parametrize("seed", range(100, 112))
def test_the_front_is_what_nothing_dominates(seed: int, cost: str) -> None:
    p = problem(4, 3, seed)
    front = pareto(p, cost)
    found = [(x.totals.get(cost), x.totals.drop) for x in front.points]
    assert (front.cost, front.exact) == (cost, True)
    assert found == sorted(undominated([t for _, t in everything(p)], cost))
    assert all(p.totals(x.chosen) == x.totals for x in front.points)


@pytest.mark.parametrize("seed", range(200, 212))
def test_the_program_finds_the_least_of_all_plans(seed: int) -> None:
    p = problem(4, 3, seed)
    plans = [t for _, t in everything(p) if t.latency < np.inf]
    kinds = ("drop", "size", "latency")
    some = plans[int(np.random.default_rng(seed).integers(len(plans)))]
    for objective in kinds:
        budgets = {k: some.get(k) for k in kinds if k != objective}
        best = min(t.get(objective) for t in plans if all(t.get(k) <= b for k, b in budgets.items()))
        answer = solve(p, objective, budgets)
        assert answer.totals == p.totals(answer.chosen)
        assert answer.totals.get(objective) == pytest.approx(best, abs=1e-6)
        assert all(answer.totals.get(k) <= b + 1e-6 for k, b in budgets.items())
        assert solve(p, objective, {}).totals.get(objective) == pytest.approx(min(t.get(objective) for t in plans))


def two(link: Link | None = None, **more: float) -> Problem:
    """Two layers that may take codes at no drop, with a link between them."""
    codes = Candidate("w8a8", 0.0, latency=-1.0, size=-3.0, reads=True, gives=True)
    rows = (Candidate("float"), codes)
    variables = tuple(Variable(n, (n,), rows) for n in "ab")
    return Problem(variables, (link,) if link else (), **({"size": 10.0, "latency": 10.0} | more))


@pytest.mark.parametrize(
    ("link", "least", "chosen"),
    [
        (None, 8.0, (1, 1)),
        (Link(0, (1,), 5.0, 5.0), 8.0, (1, 1)),  # a conversion at both ends of a plan alone costs too much
        (Link(0, (1, OUTSIDE), 5.0, 5.0), 9.0, (0, 0)),
        (Link(0, (1,), 0.0, 0.0, (), 3.0), 9.0, None),  # handing codes on costs 3
        (Link(0, (1,), 2.0, 2.0, (), -3.0), 5.0, (1, 1)),  # ... or gains 3
        (Link(OUTSIDE, (0, 1), 0.5, 9.0), 8.5, (1, 1)),  # one conversion serves both
    ],
)
def test_conversions_are_paid_where_kinds_meet(link: Link | None, least: float, chosen: tuple[int, ...] | None) -> None:
    p = two(link)
    best = min(t.latency for _, t in everything(p))
    answer = solve(p, "latency", {})
    assert answer.totals.latency == pytest.approx(best) == pytest.approx(pareto(p).points[0].totals.latency)
    if link is None or link.readers != (1, OUTSIDE):
        assert best == pytest.approx(least)
    if chosen is not None and best == pytest.approx(least):
        assert answer.chosen == chosen


def test_a_budget_holds_to_a_hundred_thousandth() -> None:
    p = two()
    assert solve(p, "drop", {"size": 4.0}).totals.size == 4.0
    assert solve(p, "drop", {"size": 4.0 * (1 - 1e-10)}).totals.size == 4.0
    with pytest.raises(Infeasible):
        solve(p, "drop", {"size": 4.0 * (1 - 1e-5)})
    with pytest.raises(Infeasible):
        solve(p, "latency", {"latency": 8.0 * (1 - 1e-5)})
    assert solve(p, "size", {"latency": 8.0, "size": 4.0, "drop": 0.0}).chosen == (1, 1)


def test_a_refusal_names_each_budget_that_cannot_be_kept_even_alone() -> None:
    with pytest.raises(Infeasible) as e:
        solve(two(), "drop", {"size": 3.5, "latency": 7.0})
    assert e.value.tightest == {"size": 4.0, "latency": 8.0}
    said = str(e.value)
    assert "size 3.5 bytes asked, 4 bytes is the least; or latency 7 ms asked, 8 ms is the least" in said
    assert "with size <= 3.5, latency <= 7 in force" in said and "budget size and latency" in said
    with pytest.raises(Infeasible) as e:
        solve(two(), "drop", {"size": 3.5})
    assert "in force" not in str(e.value) and "budget size" in str(e.value)


def test_a_front_is_thinned_to_its_limit_with_its_ends_kept() -> None:
    p = problem(9, 5, 3, links=False)
    whole, thin = pareto(p, "size"), pareto(p, "size", limit=20)
    assert whole.exact and not thin.exact and 2 <= len(thin.points) <= 20 < len(whole.points)
    assert thin.points[0].totals.size == whole.points[0].totals.size
    assert thin.points[-1].totals.drop == whole.points[-1].totals.drop
    exactly = pareto(p, "size", limit=len(whole.points) * 8)
    assert exactly.exact and [x.totals for x in exactly.points] == [x.totals for x in whole.points]


def test_of_each_step_of_the_cost_the_last_is_kept_and_the_first_of_all() -> None:
    """Costs 5, 6 .. 14 in five steps of 9/4: those that end a step, and 5."""
    cost, drop = np.arange(5.0, 15.0), np.arange(10.0, 0.0, -1.0)
    halves = [(cost[k::2], drop[k::2], np.arange(10)[k::2], k) for k in (0, 1)]
    worse = (cost + 0.5, drop + 0.5, np.arange(10), 2)
    (found, dropped, trail, choice), exact = front._merge([*halves, worse], 5)
    step = [int((c - 5) / 9 * 4) for c in cost]
    kept = [i for i in range(10) if i == 0 or i == 9 or step[i] != step[i + 1]]
    assert not exact and kept == [0, 2, 4, 6, 8, 9]
    assert (trail.tolist(), choice.tolist()) == (kept, [i % 2 for i in kept])
    assert (found.tolist(), dropped.tolist()) == ([cost[i] for i in kept], [drop[i] for i in kept])
    everyone, exact = front._merge([*halves, worse], 10)
    assert exact and everyone[2].tolist() == list(range(10))


def test_points_are_shared_out_among_states_in_whole_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[int] = []
    real = front._merge
    monkeypatch.setattr(front, "_merge", lambda parts, share: shares.append(share) or real(parts, share))
    for limit, links, expected in ((1, True, {16}), (1000, False, {1000})):
        shares.clear()
        pareto(problem(4, 3, 100, links=links), limit=limit)
        assert set(shares) == expected
    shares.clear()
    pareto(problem(4, 3, 100), limit=1001)
    assert all(isinstance(s, int) and s in {1001 // k for k in range(1, 1001)} for s in shares) and len(set(shares)) > 1
