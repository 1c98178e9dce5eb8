"""A cheap estimate of sensitivity that needs no gradient: the error of each operator's own result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from graphpress.context import Context
from graphpress.passes.allocate.divergence import noise_share
from graphpress.passes.allocate.edges import Probe
from graphpress.passes.allocate.formats import FLOAT
from graphpress.passes.allocate.parts import Parts


def estimate(
    parts: Parts, ctx: Context, probe: Probe, wanted: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Operator -> format -> noise in what it gives as a share of the power, on some samples of the probe.

    That is the divergence of the outputs but for how much the rest of the graph makes of it.
    """
    edges = [v for n in wanted for v in (*parts.parts[n].inputs, *parts.parts[n].outputs)]
    values = next(iter(probe.chunks(edges)))
    found: dict[str, dict[str, float]] = {}
    for node in ctx.progress(wanted, "estimate", len(wanted)):
        before = parts.run(node, FLOAT, values)
        for name in wanted[node]:
            after = parts.run(node, name, values)
            shares = [noise_share(x.astype(np.float64), after[v].astype(np.float64)) for v, x in before.items()]
            found.setdefault(node, {})[name] = float(np.mean(shares))
    return found
