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
_STEPS = 7  # halvings of the price between two that are known
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
    meter: Meter, knots: Sequence[float] = KNOTS, *, progress: Progress = quiet
) -> tuple[np.ndarray, np.ndarray]:
    """(knots, prices): at each budget the lowest price found at which the data takes no larger share.

    A share that even the highest price exceeds (learners that every token takes) has that price.
    """
    seen: dict[float, float] = {}

    def share_at(price: float) -> float:
        if price not in seen:
            seen[price] = meter.usage(price).share
        return seen[price]

    low, high = -1.0, 1.0
    floor, ceiling = share_at(-EVERY), share_at(EVERY)
    while share_at(low) < ceiling and low > EVERY / 16:
        low *= 2
    while share_at(high) > floor and high < -EVERY / 16:
        high *= 2
    prices = []
    for knot in progress(knots, "prices", len(knots)):
        if knot >= 1:
            prices.append(low)
            continue
        below = min((p for p, s in seen.items() if s <= knot and abs(p) < -EVERY), default=high)
        above = max((p for p, s in seen.items() if s > knot and abs(p) < -EVERY), default=below)
        for _ in range(_STEPS if above < below else 0):
            middle = (above + below) / 2
            above, below = (middle, below) if share_at(middle) > knot else (above, middle)
        prices.append(below)
    return np.array(knots), np.minimum.accumulate(np.array(prices))
