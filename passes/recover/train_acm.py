"""Teach ACMs: their learners, then their gates, then the whole model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.errors import BadRequest
from graphpress.graph import randomness
from graphpress.observe import checkpoint, statefile
from graphpress.observe.data import CalibrationData
from graphpress.ops.acm_price import price_at
from graphpress.passes.acm import site
from graphpress.passes.acm.site import AcmSite
from graphpress.passes.acm.usage import KNOTS, Meter, Usage, exhibit, fit_prices
from graphpress.passes.recover.acm_methods import Gates, Learners, Whole, places
from graphpress.passes.recover.acm_terms import BUDGET, PRICE
from graphpress.passes.recover.engine.recovery import Recovery
from graphpress.passes.recover.engine.samples import Samples, split
from graphpress.passes.recover.engine.schedule import Settings
from graphpress.passes.recover.engine.scope import Scope
from graphpress.passes.recover.engine.selection import Selection
from graphpress.passes.recover.engine.state import TrainingState
from graphpress.passes.recover.engine.trainer import Outcome
from graphpress.passes.recover.losses.base import Tensors, Weighted, make
from graphpress.passes.recover.methods.base import Method
from graphpress.types import Numerics, Stage

if TYPE_CHECKING:
    import torch

_MEASURED = 4  # batches by which it is decided which parameters are kept


@dataclass(frozen=True)
class TrainAcm(Pass):
    """Teach ACMs towards the model as it was before, on calibration data without labels (arXiv:2312.10193, sec. 3).

    Three phases. Learners: what comes out after each number of them towards what the layer gave, on the inputs that the
    layer had. Gates: how many learners each token needs, by the improvement that one more brings. End to end: the
    outputs towards the former ones at each of ``budgets``, with gates that get the gradient of that. The gate is one
    linear layer: the three without activation between them of the released code are one.

    At the end the prices are measured at which the data holds each budget.

    Attributes:
        learner_steps: Updates of the first phase; 0 leaves it out.
        gate_steps: Updates of the second phase; 0 leaves it out.
        steps: Updates of the third phase; 0 leaves it out.
        seconds: Time for all three at most, shared as the steps are; None: no limit.
        batch: Samples an update.
        learner_rate: Learning rate of the first phase.
        gate_rate: Learning rate of the second phase, and of the gates in the third.
        rate: Learning rate of the third phase.
        labels: What gates learn first. ``worth``: at each of ``budgets``, the number of learners that leaves the least
            squared error for the work, over all layers together. ``ratio``: one number for a token, where one learner
            more shrinks the error by less than ``ratio`` (the paper's rule, which knows no budget).
        ratio: See ``labels``.
        budgets: Shares of the learners that the third phase trains for in turn, each above 0 and at most 1.
        losses: What the third phase compares outputs with, as in ``recover``.
        budget_weight: Weight of the distance from the budget. The paper's 0.1 is for a loss of labels; a divergence
            from the teacher is smaller, and gates would pay such a fine and take every learner.
        entropy_weight: Weight of the term against gates that always choose the same.
        diversity_weight: Weight of the term for work that depends on the sample.
        train: ``all`` parameters in the third phase, or the ``learners`` and their gates only.
        budget: Becomes the default of the input ``budget``; None: as it is.
        held_out: Share of the samples that decides which parameters are kept.
        samples: Samples by which the prices are measured at the end.
        state: A file that keeps the state of the training: an interrupted one goes on from it.
    """

    name: ClassVar[str] = "train-acm"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    needs: ClassVar[tuple[Stage, ...]] = (Stage.FLOAT, Stage.QDQ)

    learner_steps: int = 200
    gate_steps: int = 200
    steps: int = 400
    seconds: float | None = None
    batch: int = 8
    learner_rate: float = 3e-4
    gate_rate: float = 1e-2
    rate: float = 1e-4
    labels: Literal["worth", "ratio"] = "worth"
    ratio: float = 1.2
    budgets: tuple[float, ...] = (0.25, 0.4, 0.6, 0.75, 1.0)
    losses: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"kl": {}})
    budget_weight: float = 1.0
    entropy_weight: float = 0.05
    diversity_weight: float = 0.05
    train: Literal["all", "learners"] = "all"
    budget: float | None = None
    held_out: float = 0.1
    samples: int = 32
    state: str | None = None

    def __post_init__(self) -> None:
        for value in (*self.budgets, *(() if self.budget is None else (self.budget,))):
            site.check_budget(value, "train-acm: option 'budgets'" if value in self.budgets else "option 'budget'")
        if not self.budgets:
            raise BadRequest("at least one budget is needed", where="train-acm: option 'budgets'")
        if min(self.learner_steps, self.gate_steps, self.steps) < 0:
            raise BadRequest("steps are not negative", where="train-acm")
        if self.batch < 1 or self.samples < 1 or not 0 < self.held_out < 1:
            raise BadRequest("batch and samples are positive, held_out is between 0 and 1", where="train-acm")
        if not self.ratio > 1:
            raise BadRequest(f"an improvement is above 1, not {self.ratio}", where="train-acm: option 'ratio'")

    @property
    def reads(self) -> tuple[str, ...]:
        return self._loss().reads

    def _loss(self) -> Weighted:
        return make(self.losses, "train-acm: option 'losses'")

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        found = site.sites(model)
        if not found:
            report.skip("model", "it has no ACM: nothing to train")
            return
        why = "training needs calibration data and the model as it was before"
        data, teacher = ctx.need("data", "train-acm", why), ctx.need("teacher", "train-acm", why)
        randomness.check_comparable(model, "train-acm", "leave train-acm out of the recipe")
        if any(s.value("w1").dtype != ir.DataType.FLOAT for s in found):
            raise BadRequest("learners are integers already", where="train-acm", fix="Put it before fold-weights.")
        phases = _Phases(self, model, ctx, found, data.allow(self.reads).bind(model), teacher)
        for name, steps in (("learners", self.learner_steps), ("gates", self.gate_steps), ("end to end", self.steps)):
            if steps:
                outcome: Outcome = getattr(phases, name.replace(" ", "_"))()
                report.metrics[f"{name}: loss"] = f"{outcome.before:.4g} -> {outcome.after:.4g}"
        phases.prices(report)
        if self.budget is not None:
            site.set_budget(model, self.budget)
        report.changed = len(found)


@dataclass
class _Phases:
    options: TrainAcm
    model: ir.Model
    ctx: Context
    sites: list[AcmSite]
    data: CalibrationData
    teacher: ir.Model

    def __post_init__(self) -> None:
        self.kept, held = split(self.data, self.options.held_out, self.ctx.seed)
        self.held = Samples(held.take(_MEASURED * self.options.batch, self.ctx.seed), self.options.batch).all()
        self.batches = Samples(self.kept, self.options.batch, self.ctx.seed)
        self.store = self._store()
        self.places = places(self.sites, self.teacher)

    def _store(self) -> TrainingState | None:
        if self.options.state is None and self.ctx.state is None:
            return None
        digest = self.data.digest()
        parts = [repr(replace(self.options, state=None)), str(self.ctx.seed)]
        parts += [checkpoint.key(m, {}, digest) for m in (self.model, self.teacher)]
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        path = statefile.place(self.options.state, self.ctx.state, key)
        assert path is not None
        return TrainingState(path, key)

    def learners(self) -> Outcome:
        """Every prefix of every layer towards what the layer gave."""
        o = self.options
        return self._train("learners", Learners(self.sites, self.places), self._alone(o.learner_steps, o.learner_rate))

    def gates(self) -> Outcome:
        """Every gate towards the number of learners that its tokens need."""
        o = self.options
        budgets = o.budgets if o.labels == "worth" else None
        method = Gates(self.sites, self.places, self.held, budgets, o.ratio)
        return self._train("gates", method, self._alone(o.gate_steps, o.gate_rate))

    def end_to_end(self) -> Outcome:
        """The outputs towards the former ones, at each budget in turn."""
        o, loss, pairs = self.options, self.options._loss(), self._prices()
        outputs = tuple(v.name or "" for v in self.model.graph.outputs)
        method = Whole(
            self.sites, o.train == "learners", o.gate_rate / o.rate / 10, o.budget_weight, o.entropy_weight,
            o.diversity_weight,
        )  # fmt: skip
        settings = self._settings(o.steps, o.rate)
        scope = Scope(self.model, self.teacher, self.ctx, outputs, loss=loss, settings=settings, features=loss.features)
        return self._train("end to end", method, scope, _Budgeted(self.batches, pairs), self._held(pairs))

    def _train(
        self,
        name: str,
        method: Method,
        scope: Scope,
        batches: Callable[[int], Sequence[Tensors]] | None = None,
        held: Sequence[Tensors] | None = None,
    ) -> Outcome:
        recovery = Recovery(scope, lambda: method, None, self.batches, self.held, Selection(), self.store)
        return recovery.train(scope, name, batches, held)

    def _alone(self, steps: int, rate: float) -> Scope:
        """The values around all layers, in the model as it was."""
        fed = {v.name for v in self.teacher.graph.inputs}
        wanted = tuple(dict.fromkeys(n for pair in self.places for n in pair if n not in fed))
        return Scope(self.model, self.teacher, self.ctx, wanted, settings=self._settings(steps, rate))

    def _settings(self, steps: int, rate: float) -> Settings:
        o = self.options
        total = o.learner_steps + o.gate_steps + o.steps
        seconds = None if o.seconds is None else o.seconds * steps / total
        return Settings(steps=steps, seconds=seconds, lr=rate, every=max(steps // 8, 1), seed=self.ctx.seed)

    def _prices(self) -> list[tuple[float, float]]:
        """(budget, price) of each budget, as the gates are now; they learn to keep them."""
        knots, prices = fit_prices(self.meter(), KNOTS)
        return [(b, price_at(b, knots, prices)) for b in self.options.budgets]

    def _held(self, pairs: Sequence[tuple[float, float]]) -> list[dict[str, torch.Tensor]]:
        import torch

        return [
            {**piece, BUDGET: torch.tensor(b), PRICE: torch.tensor(p)}
            for i, piece in enumerate(self.held)
            for j, (b, p) in enumerate(pairs)
            if len(self.held) < len(pairs) or i % len(pairs) == j
        ]

    def meter(self) -> Meter:
        run = self.ctx.need("run", "train-acm")
        return Meter(self.model, self.data.take(self.options.samples, self.ctx.seed), run)

    def prices(self, report: PassReport) -> None:
        """Measure the table of prices and put it into the model; say what the budgets come to."""
        meter = self.meter()
        knots, prices = fit_prices(meter, progress=self.ctx.progress)
        site.set_table(self.model, knots, prices)
        used: dict[str, Usage] = {}
        for budget in self.options.budgets:
            usage = meter.usage(price_at(budget, knots, prices))
            report.metrics[f"budget {budget}: learners taken"] = round(usage.share, 4)
            used[f"budget {budget}"] = usage
        report.exhibits.append(exhibit(used))


@dataclass(frozen=True)
class _Budgeted:
    """The batches, each with one of the budgets in turn."""

    batches: Samples
    pairs: Sequence[tuple[float, float]]

    def __call__(self, step: int) -> list[dict[str, torch.Tensor]]:
        import torch

        budget, price = self.pairs[step % len(self.pairs)]
        return [{**p, BUDGET: torch.tensor(budget), PRICE: torch.tensor(price)} for p in self.batches(step)]
