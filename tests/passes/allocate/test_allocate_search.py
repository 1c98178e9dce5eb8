"""Front and integer program against every assignment there is, and the laws of budgets."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphpress.errors import BadRequest
from graphpress.passes.allocate.front import pareto
from graphpress.passes.allocate.problem import OUTSIDE, Candidate, Link, Problem, Totals, Variable
from graphpress.passes.allocate.solve import Infeasible, solve


def problem(sites: int, formats: int, seed: int, *, links: bool = True) -> Problem:
    """Whole-number costs, so that sums are exact; the second half of the formats reads and writes integers."""
    rng = np.random.default_rng(seed)
    variables = []
    for i in range(sites):
        rows = [Candidate("float")]
        for f in range(1, formats):
            drop, size, latency = map(float, (rng.integers(0, 30), -rng.integers(1, 40), rng.integers(-20, 10)))
            integer = bool(f > formats // 2)
            gives = integer and bool(rng.integers(2))
            rows.append(Candidate(f"f{f}", drop, size, latency, integer, gives, not integer))
            if not integer and rng.integers(2):  # codes on all sides: a kernel of its own
                fast = latency - float(rng.integers(10))
                rows.append(Candidate(f"f{f}", drop, size, fast, True, bool(rng.integers(2)), True, True))
        variables.append(Variable(f"v{i}", (f"v{i}",), tuple(rows)))
    made = []
    for i in range(sites - 1) if links else ():
        readers = sorted({i + 1, int(rng.integers(i + 1, sites))}) + ([OUTSIDE] if rng.integers(2) else [])
        source, (up, down) = i if rng.integers(4) else OUTSIDE, map(float, rng.integers(0, 12, 2))
        extra, kept = tuple(map(float, rng.integers(0, 9, len(readers)))), float(rng.integers(-5, 6))
        made.append(Link(source, tuple(readers), up, down, extra, kept))
    return Problem(tuple(variables), tuple(made), size=1000.0, latency=100.0)


def everything(p: Problem) -> list[tuple[tuple[int, ...], Totals]]:
    return [(c, p.totals(c)) for c in itertools.product(*(range(len(v.choices)) for v in p.variables))]


def undominated(totals: list[Totals], cost: str) -> set[tuple[float, float]]:
    pairs = {(t.get(cost), t.drop) for t in totals}
    return {p for p in pairs if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in pairs)}


@pytest.mark.parametrize("cost", ["size", "latency"])
@pytest.mark.parametrize("seed", range(6))
def test_front_of_six_sites_and_three_formats_is_brute_force(seed: int, cost: str) -> None:
    p = problem(6, 3, seed)
    front = pareto(p, cost)
    assert front.exact
    found = [(x.totals.get(cost), x.totals.drop) for x in front.points]
    assert set(found) == undominated([t for _, t in everything(p)], cost)
    assert len(set(found)) == len(found)
    assert found == sorted(found)
    for point in front.points:
        assert p.totals(point.chosen) == point.totals


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
def test_integer_program_on_eight_sites_is_brute_force(seed: int) -> None:
    p = problem(8, 3, seed)
    plans = [(c, t) for c, t in everything(p) if t.latency < np.inf]
    rng = np.random.default_rng(seed + 100)
    for objective, (first, second) in (
        ("drop", ("size", "latency")), ("latency", ("drop", "size")), ("size", ("drop", "latency")),
    ):  # fmt: skip
        some = plans[int(rng.integers(len(plans)))][1]
        budgets = {first: some.get(first), second: some.get(second)}
        best = min(t.get(objective) for _, t in plans if all(t.get(k) <= b for k, b in budgets.items()))
        answer = solve(p, objective, budgets)
        assert answer.totals.get(objective) == pytest.approx(best, abs=1e-6)
        assert all(answer.totals.get(k) <= b + 1e-6 for k, b in budgets.items())
        assert p.totals(answer.chosen) == answer.totals


@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["size", "latency"]))
@settings(max_examples=25)
def test_a_looser_budget_never_raises_the_objective(seed: int, a: float, b: float, cost: str) -> None:
    p = problem(5, 3, seed)
    least = solve(p, cost, {}).totals.get(cost)
    tight, loose = (least + share * (1.2 * getattr(p, cost) - least) for share in sorted((a, b)))
    drops = [solve(p, "drop", {cost: budget}).totals.drop for budget in (tight, loose)]
    assert drops[1] <= drops[0] + 1e-9


def test_an_infeasible_budget_says_what_binds_and_the_tightest_that_can_be_kept() -> None:
    p = problem(5, 3, 3)
    least = solve(p, "size", {}).totals.size
    with pytest.raises(Infeasible) as e:
        solve(p, "drop", {"size": least - 1, "latency": 1e9})
    assert isinstance(e.value, BadRequest)
    assert e.value.tightest == {"size": least}
    assert "budget size" in str(e.value)
    assert f"{least:.6g} bytes is the least" in str(e.value)
    assert solve(p, "drop", {"size": e.value.tightest["size"]}).totals.size == least


def test_budgets_that_can_be_kept_alone_but_not_together_name_both() -> None:
    p = problem(5, 3, 3)
    plans = [t for _, t in everything(p)]
    budgets = {"size": min(t.size for t in plans), "drop": 0.0}
    with pytest.raises(Infeasible) as e:
        solve(p, "latency", budgets)
    assert e.value.tightest["size"] == min(t.size for t in plans if t.drop <= 0)
    assert e.value.tightest["drop"] == min(t.drop for t in plans if t.size <= budgets["size"])


def test_a_front_that_is_thinned_out_says_so_and_keeps_its_ends() -> None:
    p = problem(12, 5, 1, links=False)
    whole, thin = pareto(p, "size"), pareto(p, "size", limit=32)
    assert whole.exact
    assert not thin.exact
    assert len(thin.points) <= 33
    assert thin.points[0].totals.size == whole.points[0].totals.size
    assert thin.points[-1].totals.drop == whole.points[-1].totals.drop
    quantum = (whole.points[-1].totals.size - whole.points[0].totals.size) / 31 * 12
    for point in thin.points:  # within a quantum a variable of the exact front
        best = min(w.totals.drop for w in whole.points if w.totals.size <= point.totals.size)
        reach = [w.totals.drop for w in whole.points if w.totals.size <= point.totals.size - quantum]
        assert best <= point.totals.drop <= (min(reach) if reach else np.inf)


def test_no_variable_and_no_choice_are_problems_too() -> None:
    assert pareto(Problem((), size=10.0), "size").points[0].totals.size == 10.0
    single = Problem((Variable("a", ("a",), (Candidate("float"),)),), size=10.0)
    assert solve(single, "drop", {"size": 10.0}).chosen == (0,)


def test_what_is_joined_stands_between_codes_and_the_search_counts_on_no_soft_ones() -> None:
    codes = Candidate("w8a8", 1.0, latency=-10.0, reads=True, gives=True)
    alone = [Candidate("w8a16"), Candidate("w8a16", latency=-10.0, reads=True, gives=True, joined=True)]
    links = (Link(0, (1,), 2.0, 2.0), Link(1, (2,), 2.0, 2.0))
    for last, least in ((codes, 70.0), (replace(codes, soft=True), 84.0)):
        ends = (Candidate("float"), codes), (Candidate("float"), last)
        rows = (ends[0], (Candidate("float"), *alone), ends[1])
        p = Problem(tuple(Variable(str(i), (str(i),), row, i == 2) for i, row in enumerate(rows)), links, latency=100.0)
        assert solve(p, "latency", {}).totals.latency == least
        assert pareto(p).points[0].totals.latency == least
        assert p.chosen({"0": "w8a8", "1": "w8a16"}, {"2"}) == [1, 2, 1]  # where it is known, it is predicted
        assert p.chosen({"0": "w8a8", "1": "w8a16"}, {}) == [1, 1, 0]
        assert p.totals([0, 2, 1]).latency == np.inf
