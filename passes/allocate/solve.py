"""The best single assignment under any mix of budgets, as an integer program (HiGHS through scipy).

One binary for each choice of each variable (HAWQ-V3, arXiv:2011.10680, section 3.4, with measured latency); a
conversion is a continuous variable that is at least the difference of its ends' kinds, which is exact as its cost is
never negative. That codes are handed on may cost or gain: that variable is held from both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphpress.errors import BadRequest
from graphpress.hush import hushed
from graphpress.passes.allocate.problem import OUTSIDE, Candidate, Problem, Share, Totals

if TYPE_CHECKING:
    from scipy.optimize import LinearConstraint

UNITS = {"drop": "", "size": " bytes", "latency": " ms"}
_SLACK = 1e-9  # of a budget, for the rounding of sums


@dataclass(frozen=True)
class Answer:
    """An optimal assignment and what it costs."""

    chosen: tuple[int, ...]
    totals: Totals


class Infeasible(BadRequest):
    """No assignment keeps the budgets; ``tightest`` holds what could be kept in place of each that binds."""

    tightest: Mapping[str, float]


def solve(problem: Problem, objective: str, budgets: Mapping[str, float]) -> Answer:
    """The assignment with the least ``objective`` whose totals are within ``budgets``.

    Args:
        problem: What to choose from.
        objective: ``drop``, ``size`` or ``latency``.
        budgets: Largest total allowed, by cost; those that are absent are free. Drop in the unit of the sensitivity.

    Raises:
        Infeasible: The message says which budget binds, and the tightest one that can be kept in its place.
    """
    program = _Program(problem)
    found = program.best(objective, budgets)
    if found is None:
        raise _infeasible(program, budgets)
    return found


def _infeasible(program: _Program, budgets: Mapping[str, float]) -> Infeasible:
    """Each budget alone, then each beside all others: the least that can be asked for in its place."""
    for share, room in program.problem.rooms(budgets):
        least = share.size + sum(min(c.size for c in program.problem.variables[i].choices) for i in share.members)
        if least > room + _SLACK * abs(room):
            raise _short(share, room, least, budgets["size"])
    tightest: dict[str, float] = {}
    for rest in (lambda k: {}, lambda k: {o: b for o, b in budgets.items() if o != k}):
        for kind, budget in budgets.items():
            best = program.best(kind, rest(kind))
            if best is not None and best.totals.get(kind) > budget * (1 + _SLACK):
                tightest[kind] = best.totals.get(kind)
        if tightest:
            break
    said = [f"{k} {budgets[k]:.6g}{UNITS[k]} asked, {v:.6g}{UNITS[k]} is the least" for k, v in tightest.items()]
    beside = "" if len(budgets) < 2 else f" with {', '.join(f'{k} <= {b:.6g}' for k, b in budgets.items())} in force"
    error = Infeasible(
        f"no plan keeps the budget{beside}: {'; or '.join(said) or 'all of them together bind'}",
        where=f"budget {' and '.join(tightest or budgets)}", fix="Loosen it, or allow more formats.",
    )  # fmt: skip
    error.tightest = tightest
    return error


def _short(share: Share, room: float, least: float, budget: float) -> Infeasible:
    """One set of operators cannot be as small as its part of the budget."""
    error = Infeasible(
        f"no plan keeps the budget: of {budget:.6g} bytes {room:.6g} are for {share.name!r}, {least:.6g} is the least",
        where="budget size", fix="Loosen it, or allow more formats.",
    )  # fmt: skip
    error.tightest = {"size": budget + (least - room)}
    return error


def _gives(choice: Candidate) -> bool:
    return choice.gives


def _reads(choice: Candidate) -> bool:
    return choice.reads


class _Program:
    """The matrices, built once: columns are the choices of all variables, three for each link, one for each bias."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.starts = np.cumsum([0, *(len(v.choices) for v in problem.variables)])
        self.binaries = int(self.starts[-1])
        pairs = ((x, r) for x in problem.links for r in dict.fromkeys(x.readers) if r != OUTSIDE and x.bytes_of(r))
        self.biases = [(x.source, r, x.bytes_of(r)) for x, r in pairs if x.source != OUTSIDE]
        self.width = self.binaries + 3 * len(problem.links) + len(self.biases)

    def best(self, objective: str, budgets: Mapping[str, float]) -> Answer | None:
        """The optimum, or None where nothing is feasible."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        if not self.problem.variables:
            return self._answer(np.zeros(0))
        cost = self._costs(objective)
        scale = np.abs(cost).max() or 1.0
        rules = [LinearConstraint(self._ones(), 1, 1), *self._links()]
        for kind, budget in budgets.items():
            row = self._costs(kind)
            size = np.abs(row).max() or 1.0
            room = (budget - self._fixed(kind)) * (1 + _SLACK * np.sign(budget - self._fixed(kind)))
            rules.append(LinearConstraint(row[None] / size, -np.inf, room / size))
        rules += [self._share(s, room) for s, room in self.problem.rooms(budgets)]
        with hushed():  # HiGHS prints some lines whatever it is asked
            found = milp(
                cost / scale,
                integrality=np.concatenate([np.ones(self.binaries), np.zeros(self.width - self.binaries)]),
                bounds=Bounds(0, 1), constraints=rules, options={"mip_rel_gap": 0.0},
            )  # fmt: skip
        return None if found.x is None else self._answer(found.x)

    def _answer(self, x: np.ndarray) -> Answer:
        chosen = tuple(int(np.argmax(x[a:b])) for a, b in zip(self.starts, self.starts[1:], strict=False))
        return Answer(chosen, self.problem.totals(chosen))

    def _fixed(self, kind: str) -> float:
        fixed = {"drop": 0.0, "size": self.problem.size + self.problem.added, "latency": self.problem.latency}
        return float(fixed[kind])

    def _costs(self, kind: str) -> np.ndarray:
        own = [getattr(c, kind) for v in self.problem.variables for c in v.choices]
        links = [x for link in self.problem.links for x in (link.up, link.down, link.kept)]
        biases = [b if kind == "size" else 0.0 for _, _, b in self.biases]
        return np.array([*own, *(links if kind == "latency" else [0.0] * len(links)), *biases], float)

    def _ones(self) -> np.ndarray:
        rows = np.zeros((len(self.problem.variables), self.width))
        for i, (a, b) in enumerate(zip(self.starts, self.starts[1:], strict=False)):
            rows[i, a:b] = 1
        return rows

    def _share(self, share: Share, room: float) -> LinearConstraint:
        """The bytes of some variables, without those of links."""
        from scipy.optimize import LinearConstraint

        row = np.zeros(self.width)
        for i in share.members:
            row[self.starts[i] : self.starts[i + 1]] = [c.size for c in self.problem.variables[i].choices]
        size = np.abs(row).max() or 1.0
        return LinearConstraint(row[None] / size, -np.inf, (room - share.size + _SLACK * abs(room)) / size)

    def _links(self) -> Sequence[LinearConstraint]:
        """Of each link, with g(ives) and r(eads) of each reader; what is joined stands beside codes only.

        up >= r - g, down >= g - r for each reader; kept <= g, kept <= r for each, kept >= g + sum of (r - 1).
        """
        from scipy.optimize import LinearConstraint

        rows, most = [], list[float]()
        for i, link in enumerate(self.problem.links):
            up, down, kept = (self._unit(self.binaries + 3 * i + k) for k in range(3))
            gives, reads = self._is(link.source, _gives), [self._is(r, _reads) for r in link.readers]
            found = [(gives + np.sum(reads, 0) - kept, float(len(reads))), (kept - gives, 0.0)]
            for reader, read in zip(link.readers, reads, strict=True):
                found += [(read - gives - up, 0.0), (gives - read - down, 0.0), (kept - read, 0.0)]
                codes = self._is(link.source, lambda c: c.gives and not (c.joined or c.soft))
                wants = self._is(reader, lambda c: c.reads and not (c.joined or c.soft))
                found.append((self._is(reader, lambda c: c.joined) - codes, 0.0))
                found.append((self._is(link.source, lambda c: c.joined and c.gives) - wants, 0.0))
            rows += [row for row, _ in found if row.any()]
            most += [bound for row, bound in found if row.any()]
        both = [self._is(s, _gives) + self._is(r, lambda c: c.keeps) for s, r, _ in self.biases]
        for i, row in enumerate(both):  # gives and keeps
            row[self.width - len(self.biases) + i] -= 1
        rows += both
        most += [1.0] * len(both)
        return [LinearConstraint(np.array(rows), -np.inf, np.array(most))] if rows else []

    def _unit(self, column: int) -> np.ndarray:
        row = np.zeros(self.width)
        row[column] = 1.0
        return row

    def _is(self, variable: int, of: Callable[[Candidate], bool]) -> np.ndarray:
        row = np.zeros(self.width)
        if variable != OUTSIDE:
            choices = self.problem.variables[variable].choices
            row[self.starts[variable] : self.starts[variable + 1]] = [float(of(c)) for c in choices]
        return row
