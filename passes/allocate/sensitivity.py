"""What each format at each operator alone costs in accuracy.

``kl`` rewrites one operator, runs it on the values that the float model feeds it, and runs the rest of the float graph
from there: mean KL(float || rewritten) of the outputs (ZeroQ, arXiv:2001.00281, section 3.2), without ever running the
prefix again. ``metric`` evaluates the whole model with that operator rewritten. ``fisher`` is an estimate from one
backward pass, ``gradient`` a bound of first order. Operators of one group are measured one by one and their costs
added, as the search adds those of groups.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from graphpress.context import Context
from graphpress.contracts import PassReport
from graphpress.errors import BadRequest, Unsupported
from graphpress.graph.cut import boundary
from graphpress.job.natures import Nature
from graphpress.observe.checkpoint import key
from graphpress.observe.inner import WORKERS, InnerValues
from graphpress.passes.allocate import fisher, gradient, own_error
from graphpress.passes.allocate.aspects import Judge
from graphpress.passes.allocate.edges import Probe, Values
from graphpress.passes.allocate.evaluated import evaluated, number
from graphpress.passes.allocate.parts import Parts
from graphpress.passes.allocate.space import Schemes
from graphpress.passes.allocate.store import Cache
from graphpress.passes.quantize.apply_plan import ApplyPlan
from graphpress.report.report import stored_bytes

_ESTIMATES = {"fisher": fisher.estimate, "gradient": gradient.estimate}
_ANCHORS = 4  # operators measured both ways where an estimate has to stand in for measurements

Drops = dict[str, dict[str, float]]  # node -> format -> cost


@dataclass
class Sensitivity:
    """The table, which of it was estimated only and how, and formats that cannot be written where."""

    drops: Drops = field(default_factory=dict)
    estimated: set[tuple[str, str]] = field(default_factory=set)
    refused: dict[tuple[str, str], str] = field(default_factory=dict)
    cached: int = 0
    how: str = ""


@dataclass
class Measurer:
    """One measurement of all operators of a space.

    Attributes:
        parts: The operators.
        ctx: Data, runtimes, the metric.
        method: ``kl``, ``metric``, ``fisher`` or ``gradient``.
        samples: How many samples are used.
        seconds: When to stop and estimate what is left; None: never.
        store: Figures known from before.
        judge: What an operator's changes are judged by.
    """

    parts: Parts
    ctx: Context
    method: str
    samples: int
    seconds: float | None
    store: Cache
    judge: Judge = field(default_factory=Judge)

    def run(self) -> Sensitivity:
        """Measure.

        Raises:
            BadRequest: There is no data or no metric, or the metric raises or gives NaN; it is named.
        """
        result, started = Sensitivity(), time.monotonic()
        probe = Probe(self.parts.space.model, self.ctx, self.samples)
        known_as = f"{self.method} {dict(self.parts.compared)}"
        owner = key(self.parts.space.model, {}, probe.data.digest())
        before = self.store.found
        left: dict[str, list[str]] = {}
        for node, formats in self.parts.space.wanted().items():
            for name in formats:
                sites = self.parts.schemes(node, name)
                known = self.store.get(owner, known_as + self.judge.text(node), node, *_text(sites))
                if known is not None:
                    result.drops.setdefault(node, {})[name] = known
                elif isinstance(why := self.parts.quantized(node, name), str):
                    result.refused[node, name] = why
                else:
                    left.setdefault(node, []).append(name)
        result.cached = self.store.found - before
        if left:
            self._fill(result, probe, left, started)
            for node, name in ((n, f) for n, formats in left.items() for f in formats):
                if (node, name) not in result.estimated:
                    text = _text(self.parts.schemes(node, name))
                    known_by = known_as + self.judge.text(node)
                    self.store.put(result.drops[node][name], owner, known_by, node, *text)
            self.store.save()
        return result

    def _fill(self, result: Sensitivity, probe: Probe, left: dict[str, list[str]], started: float) -> None:
        if self.method in _ESTIMATES:
            found = _ESTIMATES[self.method](self.parts, self.ctx, probe, left)
        elif self.method == "metric":
            found = self._metric(left, started)
        else:
            found = self._kl(probe, left, started)
        missing = {n: [f for f in formats if f not in found.get(n, {})] for n, formats in left.items()}
        missing = {n: formats for n, formats in missing.items() if formats}
        if missing:
            known = {n: list(found[n]) for n in list(found)[:_ANCHORS] if n not in missing}
            guess, result.how = self._estimate(probe, missing | known)
            scale = _scale([(found[n][f], guess[n][f]) for n in known for f in known[n]])
            for node, formats in missing.items():
                found.setdefault(node, {}).update({f: scale * guess[node][f] for f in formats})
                result.estimated |= {(node, f) for f in formats}
        for node, row in found.items():
            result.drops.setdefault(node, {}).update(row)

    def _estimate(self, probe: Probe, wanted: dict[str, list[str]]) -> tuple[Drops, str]:
        """What stands in for measurements, and how it was had where there is no gradient."""
        why = "there is no torch"
        if self.ctx.differentiate is not None:
            try:
                return fisher.estimate(self.parts, self.ctx, probe, wanted), ""
            except Unsupported as e:
                why = f"no gradient: {e}"
        return own_error.estimate(self.parts, self.ctx, probe, wanted), f"by the error of each one's own result ({why})"

    def _late(self, started: float) -> bool:
        return self.seconds is not None and time.monotonic() - started > self.seconds

    def _kl(self, probe: Probe, left: dict[str, list[str]], started: float) -> Drops:
        """Costs of the operators that there was time for; the largest are measured first."""
        model = self.parts.space.model
        wanted = self.parts.compared
        rests = {n: boundary(model, self.parts.parts[n].outputs) for n in left}
        names = [v for n in left for v in (*self.parts.parts[n].inputs, *rests[n].inputs)] + list(wanted)
        order = sorted(left, key=lambda n: -stored_bytes(self.parts.parts[n].model))
        sums: dict[tuple[str, str], list[float]] = {}

        def one(node: str, values: Values) -> None:
            if self._late(started):
                return
            reached = {k: v for k, v in wanted.items() if k in rests[node].outputs}
            costs = self._rest(node, left[node], rests[node].inputs, reached, values)
            for name, cost in zip(left[node], costs, strict=True):
                sums.setdefault((node, name), []).append(cost)

        with ThreadPoolExecutor(WORKERS) as pool:
            for values in probe.chunks(names):
                _finite(values, wanted)
                done = pool.map(lambda n, v=values: one(n, v), order)
                for _ in self.ctx.progress(done, "sensitivity", len(order)):
                    pass
        found: Drops = {}
        for (node, name), costs in sums.items():
            found.setdefault(node, {})[name] = number(sum(costs) / len(costs), "kl", f"{node} in {name}")
        return found

    def _rest(
        self, node: str, formats: Sequence[str], inputs: Sequence[str], wanted: Mapping[str, Nature], values: Values
    ) -> list[float]:
        """The divergence of the outputs for each format of one operator."""
        part = self.parts.parts[node]
        if not wanted:
            return [0.0] * len(formats)
        run = self.ctx.need("run", "allocate")
        rest = InnerValues.of(self.parts.space.model, list(wanted), run, given=inputs, floats=False)
        costs = []
        for name in formats:
            made = self.parts.run(node, name, values)
            feeds = values | {n: made[n] for n in part.outputs}
            costs.append(self.judge.one(node, values, rest(feeds), wanted))
        return costs

    def _metric(self, left: dict[str, list[str]], started: float) -> Drops:
        self.ctx.need("evaluate", "allocate: option 'sensitivity'", "there is no metric", "use kl")
        space, found = self.parts.space, dict[str, dict[str, float]]()
        base = evaluated(self.ctx, self.parts.runner(space.model), "the float model")
        jobs = [(n, f) for n, formats in left.items() for f in formats]
        for node, name in self.ctx.progress(jobs, "sensitivity", len(jobs)):
            if self._late(started):
                break
            clone = space.model.clone()
            ctx = replace(self.ctx, calibrate=lambda *a, **k: self.parts.ranges)
            ApplyPlan(space.plan({node: name})).run(clone, ctx, PassReport())
            value = evaluated(self.ctx, self.parts.runner(self.parts.fold(clone)), f"{node} in {name}")
            found.setdefault(node, {})[name] = max(base - value, 0.0)
        return found


def _scale(pairs: Sequence[tuple[float, float]]) -> float:
    """What the estimates have to be multiplied with to be like what was measured: a median in which size counts."""
    ratios = sorted((m / e, m) for m, e in pairs if m > 0 and e > 0)
    half, seen = sum(m for _, m in ratios) / 2, 0.0
    for ratio, weight in ratios:
        seen += weight
        if seen >= half:
            return ratio
    return 1.0


def _finite(values: Values, wanted: Iterable[str]) -> None:
    for name in wanted:
        if np.isnan(values[name].astype(np.float64)).any():
            raise BadRequest("the float model gives NaN on the data", where=f"output {name!r}", fix="Repair the data.")


def _text(sites: Schemes) -> list[str]:
    return [f"{s} {v}" for s, v in sites.items()]
