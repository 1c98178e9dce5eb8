"""How much the teacher's outputs mind a change of a value: squared gradients, the diagonal of the Fisher matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from graphpress.job import natures
from graphpress.job.natures import Form, Kind, Nature
from graphpress.passes.recover.engine.scope import Scope
from graphpress.passes.recover.engine.seeding import reproducible
from graphpress.passes.recover.engine.student import Excerpt, build
from graphpress.passes.recover.losses.base import Tensors

if TYPE_CHECKING:
    import torch

_OF = "fisher: "  # in a batch, before the names of the values
_LEAST = 1e-3  # of the mean: no element counts for nothing


class Fisher:
    """At the end of one block.

    Class scores give gradients of the log-likelihood of a class drawn from the scores themselves, other outputs those
    of an inner product with random signs (BRECQ, arXiv:2102.05426, eq. 10). Each element's gradient is squared; the
    weights of a batch have mean 1.

    Args:
        scope: Of the block; its model before is what is differentiated.
        aside: Values that go around the block's end.
    """

    def __init__(self, scope: Scope, aside: Sequence[str]) -> None:
        assert scope.before is not None
        graph = scope.before.graph
        ends = tuple(v.name or "" for v in graph.outputs)
        self.model, self.cut, self.seed = scope.before, scope.outputs, scope.settings.seed
        self.tail = None
        if not set(ends) <= set(scope.outputs):
            self.tail = build(scope.before, scope.ctx, Excerpt(ends, [*scope.outputs, *aside], device=scope.device))
        self.found: Mapping[str, Nature] | None = None

    def __call__(self, batch: Tensors, teacher: Tensors, number: int) -> dict[str, torch.Tensor]:
        """What goes into a batch: the weights of its values, as ``told`` puts the values themselves there.

        Args:
            batch: The inputs of the graph and what goes around the cut.
            teacher: The teacher's values at the cut.
            number: Of the batch: seeds what is drawn.
        """
        import torch

        given = {n: t.detach().clone().requires_grad_() for n, t in teacher.items() if t.is_floating_point()}
        with torch.enable_grad(), reproducible(self.seed * 1_000_003 + number):
            ends = given if self.tail is None else self.tail({**batch, **teacher, **given})
            if self.found is None:
                self.found = natures.find(self.model, {n: t.detach().cpu().numpy() for n, t in ends.items()})
            terms = [_term(ends[n], nature) for n, nature in self.found.items() if ends[n].requires_grad]
            if not terms:
                return {}
            got = torch.autograd.grad(sum(terms[1:], start=terms[0]), list(given.values()), allow_unused=True)
        squares = {n: g.square() for n, g in zip(given, got, strict=True) if g is not None and bool(g.any())}
        return {_OF + n: (s / s.mean()).clamp_min(_LEAST) for n, s in squares.items()}


def weight_of(batch: Tensors, name: str) -> torch.Tensor | None:
    """What the elements of a value count; None: all the same."""
    return batch.get(_OF + name)


def _term(y: torch.Tensor, nature: Nature) -> torch.Tensor:
    import torch

    if nature.kind is not Kind.CLASSES:
        sign = torch.randint(0, 2, y.shape, device=y.device).to(y.dtype) * 2 - 1
        return (y * sign).sum() / y.detach().square().mean().sqrt().clamp_min(1e-12)
    logits = torch.log(y.clamp_min(1e-12)) if nature.form is Form.PROBABILITIES else y
    logs = torch.log_softmax(logits, nature.axis).movedim(nature.axis, -1).reshape(-1, y.shape[nature.axis])
    return logs.gather(1, torch.multinomial(logs.detach().exp(), 1)).sum()
