"""``qvgen``: quantized layers trained beside low-rank branches that fade away, rank by rank (arXiv:2505.11497).

Training at four bits and below is held up by large gradients. A branch beside each quantized layer,
y = Q(W) x + L diag(gamma) R x, takes up most of what rounding loses (``adapters.low_rank``), and so makes them small.
In phases of equal length the half of its columns with the smaller singular values fades, gamma going from 1 to 0 as
(1 + cos(pi t / T)) / 2; at the end of a phase the other half, whose product is split anew by its singular values, goes
on. After log2(rank) + 1 phases there is nothing left of it, and what comes out is the plain quantized model.

What is measured and kept is always the model without branches: the one that would come out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import onnx_ir as ir

from graphpress.errors import BadRequest
from graphpress.passes.recover.adapters import gone
from graphpress.passes.recover.adapters.base import Attached
from graphpress.passes.recover.adapters.beside import DOWN, GAMMA, UP
from graphpress.passes.recover.adapters.low_rank import LowRank, constants, factors, halved
from graphpress.passes.recover.engine.roles import TrainedRole
from graphpress.passes.recover.engine.schedule import Settings
from graphpress.passes.recover.engine.scope import Scope
from graphpress.passes.recover.engine.state import Saved
from graphpress.passes.recover.engine.student import typed
from graphpress.passes.recover.losses.base import Tensors
from graphpress.passes.recover.methods.base import Update
from graphpress.passes.recover.methods.distill import Distill
from graphpress.passes.structure.layers.linear import layers

if TYPE_CHECKING:
    import torch

BRANCH = "branch"


@dataclass
class Qvgen(Distill):
    """See the head of this file. The losses are those of the pass.

    Attributes:
        rank: Of the branches at first.
        rate: Learning rate of the branches, in units of the weights'.
        share: Of the steps, in which they fade; the rest trains the plain quantized model.
    """

    rank: int = 32
    rate: float = 1.0
    share: float = 1.0

    blocks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.rate < math.inf or not 0 < self.share <= 1:
            raise _wrong(f"rank {self.rank} and rate {self.rate} have to be positive, share {self.share} at most 1")

    def check(self, settings: Settings) -> None:
        if self._period(settings) < 1 or settings.seconds is not None:
            phases = len(ranks(self.rank))
            what = f"branches of rank {self.rank} fade in {phases} phases of equal steps"
            raise _wrong(what, f"Set steps, to {math.ceil(phases / self.share)} at least, and leave out seconds.")

    def _period(self, settings: Settings) -> int:
        """Steps of one phase."""
        return int((settings.steps or 0) * self.share) // len(ranks(self.rank))

    def setup(self, scope: Scope) -> dict[str, TrainedRole]:
        self.ranks, self.ctx = ranks(self.rank), scope.ctx
        self.period, self.stage = self._period(scope.settings), 0
        self.whole = typed(scope.model).clone()
        self.before = gone.Skeleton.of(self.whole)
        self.branches = self._attach(scope)
        module = scope.build(self.whole)
        student = self.compare(scope, module)
        self.gammas = [module.own(b.constants[GAMMA]) for b in self.branches]
        trained = module.train(n for b in self.branches for n in b.trained)
        rates = dict.fromkeys(trained, self.rate)
        self.branch = TrainedRole(trained, rates=rates, module=module, export=False)
        return {"student": student, BRANCH: self.branch}

    def _attach(self, scope: Scope) -> list[Attached]:
        adapter, names = LowRank(self.rank), set(scope.names)
        found = [v for v in layers(list(self.whole.graph)) if v.weight_value.name in names]
        fitting = [v for v in found if adapter.fits(self.whole, v)]
        if not fitting:
            what = "no linear layer whose weight is trained has a quantized one, and branches stand beside no others"
            raise _wrong(what, "Put quantize before recover, or train by method distill.")
        return [adapter.insert(self.whole, view, scope.ctx) for view in fitting]

    def losses(self, batch: Tensors, update: Update) -> Mapping[str, torch.Tensor]:
        self._fade(fading(self.ranks, self.period, update.number))
        total = self.total(self.see(batch, update), update)
        return {"student": total, BRANCH: total}

    def measure(self, batch: Tensors, update: Update) -> torch.Tensor | None:
        self._fade([0.0] * self.rank)
        return super().measure(batch, update)

    def _fade(self, gamma: Sequence[float]) -> None:
        import torch

        with torch.no_grad():
            for one in self.gammas:
                one.copy_(one.new_tensor(gamma).reshape(one.shape))

    def after_step(self, update: Update) -> None:
        """At the end of a phase let the surviving half of each branch go on, in the order of its singular values."""
        super().after_step(update)
        if self.stage < len(self.ranks) and update.number + 1 == (self.stage + 1) * self.period:
            for branch in self.branches:
                self._halve(branch, self.ranks[self.stage] // 2)
            self.branch.forget.update(self.branch.parameters)  # moments of columns that are others now
            self.stage += 1

    def _halve(self, branch: Attached, keep: int) -> None:
        import torch

        down, up = (self.branch.parameters[branch.constants[part]] for part in (DOWN, UP))
        stored = [p.detach().cpu().numpy() for p in (down, up)]
        made = constants(*halved(*factors(*stored), keep), *stored)
        for parameter, array in zip((down, up), made, strict=True):
            parameter.copy_(torch.from_numpy(array))

    def state(self) -> Saved:
        said = super().state()
        return Saved(said.tensors, {"losses": said.facts, "stage": self.stage})

    def load(self, saved: Saved) -> None:
        super().load(Saved(saved.tensors, saved.facts["losses"]))
        self.stage = int(saved.facts["stage"])

    def finalize(self, model: ir.Model, roles: Mapping[str, TrainedRole]) -> None:
        """Write the weights; prove that the branches, faded to 0, leave nothing and change nothing.

        Raises:
            PassError: Something is left of a branch.
        """
        self.write(model, roles)
        whole = self.whole.clone()
        self.student.write(whole, [n for role in roles.values() for n in role.parameters])
        data = self.ctx.data
        feeds = [] if data is None else list(data.bind(model).take(1, self.ctx.seed).batches(1))
        gone.fold_all(whole, self.before, self.ctx, feeds)


def ranks(first: int) -> list[int]:
    """The ranks of the phases, such as 32, 16, 8, 4, 2, 1; then there is none."""
    return [first >> i for i in range(first.bit_length())]


def fading(phases: Sequence[int], period: int, step: int) -> list[float]:
    """gamma of each column at a step: 1 of the half that stays, falling of the half that goes, 0 of what is gone."""
    phase, t = divmod(step, period)
    rank = phases[phase] if phase < len(phases) else 0
    falls = 0.5 * (1.0 + math.cos(math.pi * t / period))
    return [1.0 if i < rank // 2 else falls if i < rank else 0.0 for i in range(phases[0])]


def _wrong(what: str, fix: str = "") -> BadRequest:
    return BadRequest(what, where="recover: method 'qvgen'", fix=fix)


METHOD = Qvgen
