"""A second-order estimate of sensitivity from one backward pass.

For small changes dy of an operator's result, KL(p || p') = 1/2 E[(g . dy)^2] + o(|dy|^2), with g the gradient at that
result of log p(c) and c drawn from the float model's own distribution p: the Fisher matrix instead of a Hessian, so it
is never negative (HAWQ, arXiv:1905.03696, with the exact inner product in place of trace times norm). An output of
values has 1/2 E[(g . dy)^2] with g of a random sign's inner product with it, scaled to a share of its power.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphpress.context import Context
from graphpress.graph import half
from graphpress.graph.cut import cut
from graphpress.job.natures import Form, Kind, Nature
from graphpress.passes.allocate.divergence import temperature
from graphpress.passes.allocate.edges import Probe, Values
from graphpress.passes.allocate.formats import FLOAT
from graphpress.passes.allocate.parts import Parts

if TYPE_CHECKING:
    import torch


def estimate(
    parts: Parts, ctx: Context, probe: Probe, wanted: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Operator -> format -> estimate, in the units of ``divergence``; some 2 |samples| values decide each.

    Raises:
        BadRequest: There is no torch to differentiate with.
        Unsupported: An operator has no form in it.
    """
    made = {n: parts.parts[n] for n in wanted}
    edges = [v for p in made.values() for v in (*p.inputs, *p.outputs)]
    backward = Backward(parts, ctx, [v for p in made.values() for v in p.outputs])
    sums: dict[str, dict[str, list[float]]] = {}
    for values in probe.chunks(edges):
        gradients = backward(values)
        for node in ctx.progress(made, "second-order estimate", len(made)):
            gradient = {v: gradients[v] for v in made[node].outputs if v in gradients}
            before = parts.run(node, FLOAT, values)
            for name in wanted[node]:
                after = parts.run(node, name, values)
                changes = (_inner(g, after[v], before[v]) for v, g in gradient.items())
                total = sum(changes, np.zeros(1))
                sums.setdefault(node, {}).setdefault(name, []).append(float(np.mean(total**2)) / 2)
    return {n: {f: float(np.mean(v)) for f, v in row.items()} for n, row in sums.items()}


def _inner(gradient: np.ndarray, after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """g . dy of each sample, one number where the first axis does not count samples."""
    change = gradient * (after.astype(np.float64) - before)
    return np.asarray(change.reshape(len(change) if change.ndim else 1, -1).sum(1))


class Backward:
    """Gradients of sampled log-likelihoods at some values of the main graph."""

    def __init__(self, parts: Parts, ctx: Context, names: Sequence[str]) -> None:
        model, self.natures = parts.space.model, parts.compared
        self.inputs = [v.name or "" for v in model.graph.inputs if not v.is_initializer()]
        self.names = [n for n in dict.fromkeys(names) if n not in self.natures]
        self.outputs = [*self.names, *self.natures]
        by, why = "allocate: option 'sensitivity'", "the estimate needs torch"
        differentiate = ctx.need("differentiate", by, why, "use kl without a time limit")
        self.module: Any = differentiate(cut(model, self.inputs, self.outputs), self.outputs)
        self.seed = ctx.seed

    def __call__(self, feeds: Values) -> Values:
        """The gradient by value, the inputs of the graph being among ``feeds``."""
        import torch

        with torch.enable_grad():
            found, drawn = self._run(feeds)
            wanted = {n: y for n, y in found.items() if y.requires_grad}
            got = torch.autograd.grad(drawn, list(wanted.values()), allow_unused=True)
        return {n: g.numpy().astype(np.float64) for n, g in zip(wanted, got, strict=True) if g is not None}

    def of(self, feeds: Values, parameters: Sequence[torch.Tensor]) -> Sequence[torch.Tensor | None]:
        """The gradients of parameters of the module, summed over samples."""
        import torch

        with torch.enable_grad():
            return torch.autograd.grad(self._run(feeds)[1], list(parameters), allow_unused=True)

    def _run(self, feeds: Values) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The values, and the sum of what is drawn at the outputs."""
        import torch

        given = [torch.from_numpy(np.ascontiguousarray(half.readable(feeds[n]))) for n in self.inputs]
        given = [x.requires_grad_() if x.is_floating_point() else x for x in given]
        found = dict(zip(self.outputs, self.module(*given), strict=True))
        torch.manual_seed(self.seed)
        terms = [t for n, nature in self.natures.items() for t in _terms(found[n].double(), nature)]
        return found, torch.stack(terms).sum()


def _terms(y: torch.Tensor, nature: Nature) -> list[torch.Tensor]:
    """Scalars whose squared gradients, of a sample, give the curvature of what ``divergence`` adds up of an output."""
    classes = nature.kind is Kind.CLASSES
    return [*([_likelihood(y, nature)] if classes else []), *([] if classes and nature.sure else [_share(y)])]


def _share(y: torch.Tensor) -> torch.Tensor:
    import torch

    sign = torch.randint(0, 2, y.shape).double() * 2 - 1
    power = (y.detach() ** 2).sum() / max(y.shape[0] if y.ndim else 1, 1)
    return (y * sign).sum() * torch.sqrt(2 / power.clamp_min(1e-30))


def _likelihood(y: torch.Tensor, nature: Nature) -> torch.Tensor:
    import torch

    logits = torch.log(y.clamp_min(1e-12)) if nature.form is Form.PROBABILITIES else y
    logs = torch.log_softmax(logits / temperature(y.ndim), nature.axis).movedim(nature.axis, -1)
    flat = logs.reshape(-1, logs.shape[-1])
    drawn = torch.multinomial(flat.detach().exp(), 1)
    rows = len(flat) / max(y.shape[0], 1)  # of a sample
    return flat.gather(1, drawn).sum() / rows**0.5
