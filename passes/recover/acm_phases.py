"""Teach ACMs: their learners, then their gates, then the whole model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.errors import BadRequest
from graphpress.keys import ORIGIN
from graphpress.observe import checkpoint
from graphpress.ops.acm_price import price_at
from graphpress.passes.acm import site
from graphpress.passes.acm.site import PARAMETERS, Site
from graphpress.passes.acm.usage import Meter, Usage, exhibit, fit_prices, open_price
from graphpress.passes.recover import acm_terms as terms
from graphpress.passes.recover.acm_terms import BUDGET, PRICE, Layer
from graphpress.passes.recover.engine.samples import Samples, split
from graphpress.passes.recover.engine.schedule import Settings
from graphpress.passes.recover.engine.state import Store
from graphpress.passes.recover.engine.student import Module, Wanted, build
from graphpress.passes.recover.engine.trainer import Outcome, Trainer
from graphpress.passes.recover.losses.base import Seen, Tensors, make
from graphpress.passes.structure.layers import ffn
from graphpress.types import Numerics, Stage

if TYPE_CHECKING:
    import torch

    from graphpress.observe.data import CalibrationData

_MEASURED = 4  # batches by which it is decided which parameters are kept
_SHARPNESS = 20.0  # of scores: how much a squared error, as a share of the output's power, counts
_LEARNERS, _GATES = ("w1", "b1", "w2", "b2"), ("gate", "gate_bias")


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

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        found = site.sites(model)
        if not found:
            report.skip("model", "it has no ACM: nothing to train")
            return
        why = "training needs calibration data and the model as it was before"
        data, teacher = ctx.need("data", "train-acm", why), ctx.need("teacher", "train-acm", why)
        if any(s.value("w1").dtype != ir.DataType.FLOAT for s in found):
            raise BadRequest("learners are integers already", where="train-acm", fix="Put it before fold-weights.")
        job = _Job(self, model, ctx, found, data.bind(model), teacher)
        for phase, steps in (("learners", self.learner_steps), ("gates", self.gate_steps), ("end to end", self.steps)):
            if steps:
                outcome: Outcome = getattr(job, phase.replace(" ", "_"))()
                report.metrics[f"{phase}: loss"] = f"{outcome.before:.4g} -> {outcome.after:.4g}"
        job.prices(report)
        if self.budget is not None:
            site.set_budget(model, self.budget)
        report.changed = len(found)


@dataclass
class _Job:
    options: TrainAcm
    model: ir.Model
    ctx: Context
    sites: list[Site]
    data: CalibrationData
    teacher: ir.Model

    def __post_init__(self) -> None:
        self.kept, held = split(self.data, self.options.held_out, self.ctx.seed)
        self.held = Samples(held.take(_MEASURED * self.options.batch, self.ctx.seed), self.options.batch).all()
        self.batches = Samples(self.kept, self.options.batch, self.ctx.seed)
        self.store = self._store()
        self.places = _places(self.sites, self.teacher)

    def _store(self) -> Store | None:
        if self.options.state is None:
            return None
        digest = self.data.digest()
        parts = [repr(replace(self.options, state=None)), str(self.ctx.seed)]
        parts += [checkpoint.key(m, {}, digest) for m in (self.model, self.teacher)]
        return Store(Path(self.options.state), hashlib.sha256("\n".join(parts).encode()).hexdigest())

    def settings(self, steps: int, rate: float) -> Settings:
        o = self.options
        total = o.learner_steps + o.gate_steps + o.steps
        seconds = None if o.seconds is None else o.seconds * steps / total
        return Settings(steps=steps, seconds=seconds, lr=rate, every=max(steps // 8, 1), seed=self.ctx.seed)

    # -- the layers alone --------------------------------------------------------------------------------------------

    def learners(self) -> Outcome:
        """Every prefix of every layer towards what the layer gave."""
        layers = self._layers(_LEARNERS)

        def loss(seen: Seen) -> torch.Tensor:
            parts = [
                terms.prefix_error(y.prefixes(seen.teacher[y.reads])[y.site.least :], seen.teacher[y.gives])
                for y in layers
            ]
            return sum(parts[1:], start=parts[0]) / len(parts)

        return self._alone("learners", layers, _LEARNERS, loss, self.options.learner_steps, self.options.learner_rate)

    def gates(self) -> Outcome:
        """Every gate towards the number of learners that its tokens need."""
        layers = self._layers(_GATES)

        def loss(seen: Seen) -> torch.Tensor:
            x = [seen.teacher[y.reads] for y in layers]
            errors = [terms.errors(y, v, seen.teacher[y.gives]) for y, v in zip(layers, x, strict=True)]
            parts = [
                terms.negative_likelihood(y, v, _SHARPNESS * price, label)
                for price, wanted in self._labels(layers, errors)
                for y, v, label in zip(layers, x, wanted, strict=True)
            ]
            return sum(parts[1:], start=parts[0]) / len(parts)

        self._start(layers)
        return self._alone("gates", layers, _GATES, loss, self.options.gate_steps, self.options.gate_rate)

    def _labels(
        self, layers: Sequence[Layer], errors: Sequence[torch.Tensor]
    ) -> list[tuple[float, list[torch.Tensor]]]:
        """(price, labels of each layer) to be learned."""
        if self.options.labels == "ratio":
            ratio = self.options.ratio
            return [(0.0, [terms.labels(e, ratio, y.site.least) for e, y in zip(errors, layers, strict=True)])]
        prices = [terms.price_of(b, errors, layers) for b in self.options.budgets if b < 1]
        return [(p, [terms.worth(e, p, y.site.least) for e, y in zip(errors, layers, strict=True)]) for p in prices]

    def _start(self, layers: Sequence[Layer]) -> None:
        """Gates that choose by the mean errors of a few samples, the same for all tokens."""
        import torch

        teacher = self._teacher(layers)
        with torch.no_grad():
            seen = [teacher(piece).teacher for piece in self.held]
            for y in layers:
                found = [terms.errors(y, t[y.reads], t[y.gives]).square().flatten(0, -2) for t in seen]
                mean = torch.cat(found).mean(0)[y.site.least :]
                y.parameters["gate"].zero_()
                y.parameters["gate_bias"].copy_(-_SHARPNESS * mean)

    def _teacher(self, layers: Sequence[Layer]) -> Callable[[Tensors], Seen]:
        """What gives the values around all layers in the model as it was."""
        wanted = list(dict.fromkeys(n for y in layers for n in (y.reads, y.gives)))
        fed = [v.name for v in self.teacher.graph.inputs]
        return partial(_see_teacher, build(self.teacher, self.ctx, Wanted([n for n in wanted if n not in fed])))

    def _layers(self, trained: Sequence[str]) -> list[Layer]:
        import torch

        made = []
        for s, (reads, gives) in zip(self.sites, self.places, strict=True):
            parameters = {
                n: torch.nn.Parameter(torch.from_numpy(s.array(n).copy()), requires_grad=n in trained)
                for n in PARAMETERS
            }
            made.append(Layer(s, parameters, reads, gives))
        return made

    def _alone(
        self, phase: str, layers: list[Layer], trained: Sequence[str], loss: Any, steps: int, rate: float
    ) -> Outcome:
        parameters = {f"{y.site.name}.{n}": y.parameters[n] for y in layers for n in trained}
        trainer = Trainer(
            see=self._teacher(layers), loss=loss, parameters=parameters, batches=self.batches, held=self.held,
            settings=self.settings(steps, rate), store=self.store, name=phase,
        )  # fmt: skip
        outcome = trainer.run(self.ctx.progress)
        for layer in layers:
            for name in trained:
                layer.site.set(name, layer.parameters[name].detach().numpy())
        return outcome

    # -- the whole model ---------------------------------------------------------------------------------------------

    def end_to_end(self) -> Outcome:
        """The outputs towards the former ones, at each budget in turn."""
        opened, price = open_price(self.model)
        task = make(self.options.losses, "train-acm: option 'losses'")
        outputs = tuple(v.name or "" for v in self.model.graph.outputs)
        fed = {v.name for v in self.model.graph.inputs}
        reads = [n for s in self.sites if (n := s.input.name or "") not in fed]
        student = build(opened, self.ctx, Wanted(list(dict.fromkeys([*outputs, *task.features, *reads]))))
        teacher = build(self.teacher, self.ctx, Wanted(list(dict.fromkeys([*outputs, *task.features]))))
        own = {s.value(n).name or "" for s in self.sites for n in PARAMETERS}
        chosen = student.train(own if self.options.train == "learners" else student.parameters)
        layers = tuple(
            Layer(s, {n: student.parameters[s.value(n).name or ""] for n in PARAMETERS}, "", "") for s in self.sites
        )
        o, pairs = self.options, self._prices()
        loss = terms.EndToEnd(task, layers, o.budget_weight, o.entropy_weight, o.diversity_weight)
        gates = {s.value(n).name or "" for s in self.sites for n in _GATES}
        trainer = Trainer(
            see=partial(_see_both, student, teacher, price, outputs), loss=loss, parameters=chosen,
            batches=_Budgeted(self.batches, pairs), held=self._held(pairs), settings=self.settings(o.steps, o.rate),
            store=self.store, name="end to end", rates=dict.fromkeys(gates & set(chosen), o.gate_rate / o.rate / 10),
        )  # fmt: skip
        outcome = trainer.run(self.ctx.progress)
        student.write(self.model, chosen)
        return outcome

    def _prices(self) -> list[tuple[float, float]]:
        """(budget, price) of each budget, as the gates are now; they learn to keep them."""
        knots, prices = fit_prices(self.meter())
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


def _see_teacher(teacher: Module, batch: Tensors) -> Seen:
    import torch

    with torch.no_grad():
        return Seen(batch, {}, {**batch, **teacher(batch)}, ())


def _see_both(student: Module, teacher: Module, price: str, outputs: tuple[str, ...], batch: Tensors) -> Seen:
    import torch

    with torch.no_grad():
        wanted = teacher(batch)
    return Seen(batch, student({**batch, price: batch[PRICE]}), wanted, outputs)


def _places(sites: Sequence[Site], teacher: ir.Model) -> list[tuple[str, str]]:
    """(what it reads, what it gives) of the layer that each ACM stands for.

    Raises:
        BadRequest: The teacher has no such layer.
    """
    anatomy = ffn.find(teacher.graph)
    layers: list[ffn.Found] = [*anatomy.projections, *anatomy.blocks]
    known = {f.name: f for f in layers}
    found = []
    for s in sites:
        layer = known.get(s.node.metadata_props.get(ORIGIN, s.name)) or known.get(s.name)
        if layer is None:
            raise BadRequest(
                "the model as it was before has no layer in its place", where=f"node {s.name!r}",
                fix="Train in the same recipe that cuts it into learners.",
            )  # fmt: skip
        found.append((layer.input.name or "", layer.output.name or ""))
    return found
