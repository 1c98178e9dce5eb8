"""A first-order estimate of what bits of weights cost: the norm of the gradient times how far the weights move.

|log p(W') - log p(W)| <= |dlog p/dW| |W' - W| + o(|W' - W|) by Cauchy and Schwarz. That is "bits by gradient norm" of
Polino et al., "Model compression via distillation and quantization", 2018, section 4, where a layer starts at one bit
less than the mean and gets of the rest in proportion to its norm. Steps halve with each bit, so that the exact search
over these costs gives bits by the logarithm of the norm, which the authors' own code notes would be right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from graphpress.context import Context
from graphpress.graph import edit
from graphpress.keys import PARAMETERS
from graphpress.passes.allocate.edges import Probe
from graphpress.passes.allocate.fisher import Backward
from graphpress.passes.allocate.parts import Parts
from graphpress.passes.quantize.fitting import fit_weights
from graphpress.passes.quantizers.named import named
from graphpress.types import Plan, Role, Site


def estimate(
    parts: Parts, ctx: Context, probe: Probe, wanted: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Operator -> format -> estimate in nats of a sample; what a format does to activations is not in it.

    An operator whose weights are no initializers of the main graph is left out.

    Raises:
        BadRequest: There is no torch to differentiate with.
        Unsupported: An operator has no form in it.
    """
    nodes = parts.space.nodes()
    held = {n: [s for f in wanted[n] for s in parts.schemes(n, f) if s.role is Role.WEIGHT] for n in wanted}
    names = {n: dict.fromkeys(_name(parts, s) for s in sites) for n, sites in held.items()}
    norms = _norms(parts, ctx, probe, list(dict.fromkeys(v for row in names.values() for v in row)))
    return {
        n: {f: sum(norms[_name(parts, s)] * d for s, d in _moved(parts, n, f).items()) for f in wanted[n]}
        for n in nodes
        if n in wanted and all(v in norms for v in names[n])
    }


def _name(parts: Parts, site: Site) -> str:
    value = parts.space.nodes()[site.node].inputs[site.slot]
    return value.name or "" if value is not None else ""


def _moved(parts: Parts, node: str, name: str) -> dict[Site, float]:
    """How far each weight of an operator is from what a format leaves of it: the root of the sum of squares."""
    schemes = {s: v for s, v in parts.schemes(node, name).items() if s.role is Role.WEIGHT}
    values = {s: parts.space.nodes()[node].inputs[s.slot] for s in schemes}
    fitted = fit_weights(Plan(schemes), {s: v for s, v in values.items() if v is not None}).params
    found = {}
    for site, params in fitted.items():
        array, scheme = edit.constant(values[site]), schemes[site]
        assert array is not None
        wide, quantizer = array.astype(np.float32), named(scheme.quantizer)
        left = quantizer.dequantize(quantizer.quantize(wide, params, scheme), params, scheme)
        found[site] = float(np.linalg.norm((left - wide).astype(np.float64)))
    return found


def _norms(parts: Parts, ctx: Context, probe: Probe, names: Sequence[str]) -> dict[str, float]:
    """The root mean square over samples of the gradient's norm, by initializer."""
    backward = Backward(parts, ctx, [])
    kept = {n: path for n, (path, _) in backward.module.meta[PARAMETERS].items()}
    known = dict(backward.module.named_parameters(remove_duplicate=False))
    trained = {n: known[kept[n]] for n in names if kept.get(n) in known}
    squares, samples = dict.fromkeys(trained, 0.0), 0
    for values in probe.chunks([]):
        for name, gradient in zip(trained, backward.of(values, list(trained.values())), strict=True):
            squares[name] += 0.0 if gradient is None else float(gradient.double().square().sum())
        samples += max((len(x) for x in values.values() if np.ndim(x)), default=1)
    return {n: (s / max(samples, 1)) ** 0.5 for n, s in squares.items()}
