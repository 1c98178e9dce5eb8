"""How many learners tokens take, and what a learner must be worth for a budget to hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.contracts import Exhibit
from graphpress.graph import edit
from graphpress.observe.data import CalibrationData
from graphpress.observe.inner import InnerValues
from graphpress.ops.acm_price import EVERY
from graphpress.passes.acm.site import price_node, share, sites
from graphpress.report import tables
from graphpress.runner import Executor, Progress, quiet

KNOTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
BATCH = 8
_GRID = 50  # budgets from 0 to 1 that are looked at
_NEAR = 0.01  # how far the share taken may lie from the budget there before the table gets a knot more
_STEPS = 7  # halvings of the price between two that are known, and as many more as it takes to come near the budget
_FINEST = 1e-8  # of the widest range of prices: where shares jump, it is not halved further
_COLUMNS = 96  # tokens of the heat map, at most


@dataclass(frozen=True)
class Usage:
    """Learners taken over some data.

    Attributes:
        names: The ACMs.
        counts: [sites][0..N], tokens that took so many.
        heat: [sites][tokens of the first sample], how many each took; longer samples are averaged down.
        share: Of all learners, each with its work.
    """

    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    heat: tuple[tuple[float, ...], ...]
    share: float

    def means(self) -> list[float]:
        """Learners a token on average, by site."""
        return [sum(k * c for k, c in enumerate(row)) / max(sum(row), 1) for row in self.counts]


def exhibit(used: Mapping[str, Usage]) -> Exhibit:
    """The drawing for the report of what each budget (its name) comes to."""
    parts = [
        {
            "name": f"{name}: {tables.percent(u.share)} of the learners' work", "share": u.share,
            "names": list(u.names), "counts": [list(c) for c in u.counts],
            "strips": [[round(v, 3) for v in row] for row in u.heat],
        }
        for name, u in used.items()
    ]  # fmt: skip
    columns = [
        "layer", "mean", "tokens by learners taken, from 0",
        "tokens of one sample in order: the darker, the more learners",
    ]  # fmt: skip
    return Exhibit("levels", "Learners that tokens take", {"parts": parts, "columns": columns})


class Meter:
    """A model whose price is fed, so that one session serves every price."""

    def __init__(self, model: ir.Model, data: CalibrationData, execute: Executor) -> None:
        self.sites = sites(model)
        self.data = data.bind(model)
        work, self.price = open_price(model)
        self.names = [s.taken.name or "" for s in sites(work)]
        self.values = InnerValues.of(work, self.names, execute, floats=False)

    def usage(self, price: float) -> Usage:
        """What tokens take at this price."""
        counts = [np.zeros(s.learners + 1, np.int64) for s in self.sites]
        heat: list[np.ndarray] = []
        for feeds in self.data.batches(BATCH):
            found = self.values(feeds | {self.price: np.array(price, np.float32)})
            taken = [found[n] for n in self.names]
            for total, got, s in zip(counts, taken, self.sites, strict=True):
                total += np.bincount(got.reshape(-1), minlength=s.learners + 1)
            heat = heat or [_first(t) for t in taken]
        means = [float((c * np.arange(len(c))).sum() / max(c.sum(), 1)) for c in counts]
        return Usage(
            tuple(s.name for s in self.sites), tuple(tuple(int(v) for v in c) for c in counts),
            tuple(tuple(float(v) for v in h) for h in heat), share(self.sites, means),
        )  # fmt: skip


def _first(taken: np.ndarray) -> np.ndarray:
    """The first sample's tokens in a row, at most some dozens of them."""
    row = (taken[0] if taken.ndim > 1 else taken).reshape(-1).astype(np.float64)
    step = -(-max(len(row), 1) // _COLUMNS)
    return np.array([row[i : i + step].mean() for i in range(0, len(row), step)])


def open_price(model: ir.Model) -> tuple[ir.Model, str]:
    """A copy whose price is an input, and that input's name."""
    work = model.clone()
    edit.index(work)
    node = price_node(work)
    assert node is not None
    given = ir.Value(
        name=edit.fresh_name(work.graph, "price"), shape=ir.Shape([]), type=ir.TensorType(ir.DataType.FLOAT)
    )
    work.graph.inputs.append(given)
    edit.replace(node.outputs[0], given)
    return work, given.name or ""


def fit_prices(
    meter: Meter, knots: Sequence[float] | None = None, *, progress: Progress = quiet
) -> tuple[np.ndarray, np.ndarray]:
    """(knots, prices): at each budget the lowest price found at which the data takes no larger share.

    A share that even the highest price exceeds (learners that every token takes) has that price. Without ``knots`` the
    table has those of tenths, and between two of them as many more as it takes to meet the budgets there.
    """
    table = _Table(meter)
    prices = [table.price(knot) for knot in progress(knots or KNOTS, "prices", len(knots or KNOTS))]
    found = dict(zip(knots or KNOTS, np.minimum.accumulate(prices).tolist(), strict=True))
    if knots is None:
        found[0.0] = max(table.price(0.0), found[KNOTS[0]])
        for low, high in zip((0.0, *KNOTS), KNOTS, strict=False):
            table.refine(found, low, high)
    ordered = sorted(found)
    return np.array(ordered), np.minimum.accumulate(np.array([found[k] for k in ordered]))


class _Table:
    """Shares taken at prices, each measured once."""

    def __init__(self, meter: Meter) -> None:
        self.meter, self.seen = meter, dict[float, float]()
        self.low, self.high = -1.0, 1.0
        self.floor, self.ceiling = self.share_at(-EVERY), self.share_at(EVERY)
        while self.share_at(self.low) < self.ceiling and self.low > EVERY / 16:
            self.low *= 2
        while self.share_at(self.high) > self.floor and self.high < -EVERY / 16:
            self.high *= 2

    def share_at(self, price: float) -> float:
        if price not in self.seen:
            self.seen[price] = self.meter.usage(price).share
        return self.seen[price]

    def price(self, knot: float) -> float:
        """The lowest found at which no more than ``knot`` is taken."""
        if knot >= 1:
            return self.low
        below = min((p for p, s in self.seen.items() if s <= knot and abs(p) < -EVERY), default=self.high)
        above = max((p for p, s in self.seen.items() if s > knot and abs(p) < -EVERY), default=below)
        step = 0 if above < below else _STEPS
        while step < _STEPS or (self._short(below, knot) and below - above > _FINEST * (self.high - self.low)):
            middle, step = (above + below) / 2, step + 1
            above, below = (middle, below) if self.share_at(middle) > knot else (above, middle)
        return below

    def _short(self, price: float, knot: float) -> bool:
        """Whether much less is taken than may be."""
        return self.share_at(price) < min(max(knot, self.floor), self.ceiling) - _NEAR

    def refine(self, found: dict[float, float], low: float, high: float) -> None:
        """Add knots between two until every budget of the grid there is met."""
        between = [k / _GRID for k in range(_GRID) if low + 1e-9 < k / _GRID < high - 1e-9]
        if not between or all(self._met(b, found, low, high) for b in between):
            return
        middle = between[len(between) // 2]
        found[middle] = min(max(self.price(middle), found[high]), found[low])
        self.refine(found, low, middle)
        self.refine(found, middle, high)

    def _met(self, budget: float, found: Mapping[float, float], low: float, high: float) -> bool:
        price = float(np.interp(budget, [low, high], [found[low], found[high]]))
        over = self.share_at(price) > max(budget, self.floor) + _NEAR
        return not over and not self._short(price, budget)
