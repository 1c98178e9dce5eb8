"""Order channels so that a mask keeps more: a rewrite that changes no output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.observe.moments import Moments, collect_moments
from graphpress.passes.prune import masks
from graphpress.passes.prune.asked_pattern import checked
from graphpress.passes.prune.search import OrderSearch
from graphpress.passes.structure.channels.commuting import survey
from graphpress.passes.structure.channels.ledger import permute, sources
from graphpress.passes.structure.channels.moves import Holder
from graphpress.passes.structure.channels.survey import Survey
from graphpress.passes.structure.layers import linear
from graphpress.types import Numerics, Stage


@dataclass(frozen=True)
class Permute(Pass):
    """Permute the channels that layers read so that an n:m mask keeps a larger sum of magnitudes.

    All readers of a value and all producers that an Add joins get one order, and so do the biases, norms, depthwise
    convolutions and tables between them (Pool and Yu, Channel Permutations for N:M Sparsity, NeurIPS 2021).
    Channels that something else reads by their place stay, as a skip with the reason.

    Attributes:
        n, m: The pattern: n of each m neighbours along the reduction axis are kept.
        score: What is to be kept: ``magnitude`` |w|, or ``energy`` w^2 E[x^2] as a share of the layer's E|W x|^2, which
            is what its output loses where inputs do not go together; needs data, and lowers the loss of all masks.
        stripes: Groups of m columns searched exhaustively at a time: 0 (swaps of two columns only), 2 or 3.
        escapes: Random disturbances of each group after the search has come to rest.
        samples: Most samples of the data to look at.
    """

    n: int = 2
    m: int = 4
    score: Literal["magnitude", "energy"] = "magnitude"
    stripes: Literal[0, 2, 3] = 2
    escapes: int = 30
    samples: int = 128

    name = "permute"
    # Sums come in another order: in float32 FastestDet moves by 5e-5 of its RMS, as it does between ONNX Runtime's own
    # levels of optimisation; in float64 by 1e-13.
    numerics = Numerics.CLOSE
    needs = (Stage.FLOAT,)

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        checked(self.n, self.m, self.name)
        channels = survey(model.graph)
        work = _Work(channels, self.m, self._moments(model, ctx, channels))
        search = OrderSearch(self.n, self.m, self.stripes * self.m, self.escapes, seed=ctx.seed)
        new = np.arange(len(work.roots))
        before = work.kept(new, self.n)
        free = [g for g in channels.groups() if len(g) >= 2 * self.m]
        moved = [g for g in ctx.progress(free, "permute", len(free)) if work.order(g, search, new)]
        report.changed = permute(channels, new)
        for reader in channels.readers:
            if not np.isin(work.roots[reader.lanes.ravel()], np.concatenate([[-1], *free])).any():
                report.skip(reader.node, channels.why_stuck(reader.lanes))
        known = {reader.node for reader in channels.readers}
        for view in linear.layers(list(model.graph)):
            if view.node not in known and view.shape[1] >= 2 * self.m:
                report.skip(view.node, "its input comes from no layer that is followed")
        if report.changed:
            after = work.kept(new, self.n)
            report.metrics |= {"groups": float(len(moved)), "kept before": before, "kept after": after}

    def _moments(self, model: ir.Model, ctx: Context, channels: Survey) -> Mapping[str, Moments]:
        """Of the inputs of layers, by name; none where magnitudes are the score."""
        names = [reader.node.name or "" for reader in channels.readers]
        if self.score == "magnitude" or not names:
            return {}
        by, why = "permute: option 'score'", "energy needs calibration data"
        data, run = ctx.need("data", by, why, "choose score: magnitude"), ctx.need("run", by)
        return collect_moments(model, names, data.take(self.samples, ctx.seed), run, progress=ctx.progress)


@dataclass
class _Work:
    """The layers that read channels, as matrices of scores [rows, places].

    Attributes:
        moments: By layer, of its inputs; where there are none magnitudes are the score.
    """

    channels: Survey
    m: int
    moments: Mapping[str, Moments]

    def __post_init__(self) -> None:
        self.roots = self.channels.roots
        self.readers = [(self.roots[r.lanes.ravel()], self.score(r)) for r in self.channels.readers]

    def score(self, reader: Holder) -> np.ndarray:
        """[rows, places] of one layer."""
        view = linear.linear(reader.node)
        assert isinstance(view, linear.Linear)
        weight, seen = view.weight().astype(np.float64), self.moments.get(reader.node.name or "")
        if seen is not None:
            energy = np.diagonal(seen.matrix[0]).reshape(1, *weight.shape[1:])
            weight = weight**2 * (energy / (seen.error(weight) or 1.0))
        return masks.columns_last(np.abs(weight)).astype(np.float32)

    def kept(self, new: np.ndarray, n: int) -> float:
        """What masks keep in all layers together, under an order."""
        return sum(
            masks.kept(weight[:, sources(atoms, new)], n, self.m)
            for atoms, weight in self.readers
            if weight.shape[1] % self.m == 0
        )

    def order(self, group: np.ndarray, search: OrderSearch, new: np.ndarray) -> bool:
        """OrderSearch an order of a group and note it in ``new``; whether there is a better one."""
        stripes: np.ndarray | None = None
        rows: list[np.ndarray] = []
        for places, weight in self._views(group):
            atoms, columns = places
            if stripes is None:
                stripes = atoms
            if _partition(atoms) == _partition(stripes):
                order = np.argsort(atoms.ravel(), kind="stable")
                at = np.searchsorted(atoms.ravel()[order], stripes.ravel())
                rows.append(weight[:, columns.ravel()[order][at]])
        if stripes is None:
            return False
        flat = stripes.ravel()
        found = search.order(np.concatenate(rows))
        new[flat] = flat[found]
        return not np.array_equal(found, np.arange(len(flat)))

    def _views(self, group: np.ndarray) -> Iterator[tuple[tuple[np.ndarray, np.ndarray], np.ndarray]]:
        """Stripes that hold this group only, as atoms and columns [stripes, m]; the layer with most rows first."""
        for atoms, weight in sorted(self.readers, key=lambda r: -len(r[1])):
            if len(atoms) % self.m:
                continue
            stripes = atoms.reshape(-1, self.m)
            whole = np.flatnonzero(np.isin(stripes, group).all(axis=1))
            columns = np.arange(len(atoms)).reshape(-1, self.m)
            # An atom that stands several times (Flatten) gives a view for each time.
            while len(whole):
                taken, left = _first(stripes, whole)
                if len(np.unique(stripes[taken])) < stripes[taken].size:
                    break
                if len(taken) > 1:
                    yield (stripes[taken], columns[taken]), weight
                whole = left


def _first(stripes: np.ndarray, whole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of these stripes those whose atoms are met for the first time, and the others."""
    seen: set[int] = set()
    taken: list[int] = []
    left: list[int] = []
    for s in whole.tolist():
        mine = set(stripes[s].tolist())
        (left if mine & seen else taken).append(s)
        seen |= mine
    return np.array(taken, int), np.array(left, int)


def _partition(stripes: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(sorted(s)) for s in stripes.tolist()}
