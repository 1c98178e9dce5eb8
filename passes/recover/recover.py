"""The pass that wins accuracy back by training: 2:4, quantized and substituted models, towards the model before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import onnx_ir as ir

from graphpress import catalog
from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.errors import BadRequest, GraphpressError, nearest
from graphpress.graph import randomness
from graphpress.observe import checkpoint, statefile
from graphpress.observe.data import CalibrationData
from graphpress.passes.recover.engine import blockwise, end_to_end, parameters
from graphpress.passes.recover.engine.recovery import Recovery
from graphpress.passes.recover.engine.samples import Samples, split, tensors
from graphpress.passes.recover.engine.schedule import Settings
from graphpress.passes.recover.engine.scope import Scope
from graphpress.passes.recover.engine.selection import Selection, selected
from graphpress.passes.recover.engine.state import TrainingState
from graphpress.passes.recover.engine.student import told
from graphpress.passes.recover.losses.base import Weighted, make
from graphpress.passes.recover.methods.base import Method, Select
from graphpress.typed import Known, typed
from graphpress.types import Numerics

# Learning rates of adamw by the bits of the coarsest weights, tried a factor of 3 apart: at 3 and 4 bits the one with
# the lowest loss on held-back calibration data (the code model, ResNet-20); in float between the two best on
# ResNet-20 at 2:4. At three to four times the rate ResNet-20 at 4 bits ends worse.
_RATES = {4: 1e-4, 8: 2e-5, 32: 2e-4}


@dataclass(frozen=True)
class Recover(Pass):
    """Train the parameters of the rewritten graph towards the graph before it, on calibration data.

    Weights that are to be quantized are trained behind their Q -> DQ, straight through the rounding (arXiv:1902.08153);
    zeros of layers with an n:m pattern stay zero. What is kept is chosen by ``select``: unless told otherwise by a loss
    on a held-back part of the data that does not move with time, which never ends higher than it began. The same seed
    and steps give the same bytes, also where the training was interrupted and went on; ``seconds`` makes the result
    depend on the machine. Under ``torchrun`` every process takes its share of the batches.

    Attributes:
        mode: ``end_to_end`` trains all at once on the outputs; ``blocks`` one block after another on its own output.
        method: How to train: a name, or one name with its options; distill makes one student like its teacher,
            adaround, autoround, brecq and genie_m learn how weights are rounded.
        losses: What is made small, by name, each with its options and ``weight``: kl {temperature, axis, on},
            mse {on}, labels {axis, on}. Empty: mse. Methods with a loss of their own take none.
        select: What is kept: ``held``, the lowest fixed loss on the held-back samples; ``metric``, the best by the
            user's metric; ``last``, what the last step left; ``ema``, the moving average then. None: as the method
            says.
        ema: Decay of that average.
        train: ``weights``, ``scales`` (of Q/DQ, learned as in LSQ), or ``all`` of both.
        steps: Updates; in blocks mode for each block.
        seconds: Time limit of the training; in blocks mode shared by all blocks.
        lr: Learning rate; None: as the method says, or by the bits of the weights.
        optimizer: adamw, adam, sgd, or sign (of the gradient). Methods that learn rounding have their own.
        schedule: Of the rate: cosine, linear or constant.
        warmup: Share of the training over which the rate rises.
        weight_decay: See ``Settings``.
        clip: Largest norm of the gradient; None: any.
        batch_size: Samples in a batch.
        accumulate: Batches whose gradients make up a step.
        precision: Of products in training; parameters stay float32.
        samples: Most samples of the calibration data to use.
        held_back: Share of these that is measured.
        inputs: In blocks mode, whose values a block is trained on: those of the ``student``, trained up to there, or of
            the ``teacher``, which makes blocks independent.
        keep_zeros: Hold all zeros of all weights, not only those of layers that say that they have a pattern.
        teacher: Path of the model to train towards; None: the model before the first lossy pass.
        state: A file that keeps the state every few seconds: an interrupted call, made again, goes on. By default
            beside the file that ``compile`` was given, if any.
        device: Where to train, as torch calls it.
    """

    mode: Literal["blocks", "end_to_end"] = "end_to_end"
    method: Annotated[str, Known(catalog.methods)] | Mapping[str, Mapping[str, Any]] = "distill"
    losses: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    select: Select | None = None
    ema: float = 0.999
    train: Literal["weights", "scales", "all"] = "weights"
    steps: int | None = 300
    seconds: float | None = None
    lr: float | None = None
    optimizer: Literal["adamw", "adam", "sgd", "sign"] = "adamw"
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.0
    clip: float | None = 1.0
    batch_size: int = 8
    accumulate: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    samples: int = 1024
    held_back: float = 0.125
    inputs: Literal["student", "teacher"] = "student"
    keep_zeros: bool = False
    teacher: str | None = None
    state: str | None = None
    device: str = "cpu"

    name = "recover"
    numerics = Numerics.LOSSY

    def __post_init__(self) -> None:
        for option in ("batch_size", "samples"):
            if getattr(self, option) < 1:
                raise _wrong(option, f"{getattr(self, option)} is not positive")
        if not 0 < self.held_back < 1:
            raise _wrong("held_back", f"{self.held_back} is not between 0 and 1")
        self._settings(32, 0)
        method = self._method()
        method.check(self._settings(32, 0))
        Selection(decay=self.ema)
        selected(method, self._name, self.select)
        if self.losses and not method.compares:
            raise _wrong("losses", f"method {self._name!r} has a loss of its own", "Leave them out.")
        loss = self._loss() if method.compares else None
        if self.mode == "blocks":
            self._check_blocks(method, loss)
        elif not method.at_once:
            raise _wrong("mode", f"method {self._name!r} trains block by block", "Set mode: blocks.")

    def _check_blocks(self, method: Method, loss: Weighted | None) -> None:
        if not method.blocks or loss is None:
            raise _wrong("method", f"{self._name!r} trains the whole model at once", "Leave the mode out.")
        if self.select == "metric":
            raise _wrong("select", "the user's metric is of a whole model, not of a block")
        if other := [n for n in loss.terms if n != "mse"]:
            raise _wrong("losses", f"{other[0]} compares outputs of the model, blocks are compared by mse alone")
        if loss.features:
            raise _wrong("losses", "in blocks mode mse compares what the blocks give", "Leave its option 'on' out.")

    @property
    def reads(self) -> tuple[str, ...]:
        method = self._method()
        return (*method.reads, *(self._loss().reads if method.compares else ()))

    def check(self, ctx: Context) -> None:
        self._data(ctx)
        self._selection(self._method(), ctx)
        if self.teacher is not None:
            _load(self.teacher)

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        """Train, and write what was learned into the initializers.

        Raises:
            BadRequest: No data, no teacher, no torch backend, nothing to train, or an option that does not fit.
            Unsupported: torch is not installed, or an operator has no form in it.
            Diverged: The loss became NaN; ``model`` holds the parameters that would have been kept.
        """
        if self._nothing_lost(model, ctx):
            report.skip("the model", "it is the one that it would be trained towards: no pass has changed it")
            return
        names = self._names(model, report)
        if not names:
            return
        recovery = self._recovery(model, names, ctx, report)
        values = [v for v in model.graph.initializers.values() if v.const_value is not None]
        old = [(v.const_value, dict(v.metadata_props)) for v in values]
        whole = self.mode == "end_to_end"
        try:
            before, after = end_to_end.run(recovery) if whole else blockwise.run(recovery, self.inputs)
        finally:
            report.changed = sum(v.const_value is not t for v, (t, _) in zip(values, old, strict=True))
        if recovery.selection.compares and not after <= before:
            for value, (tensor, notes) in zip(values, old, strict=True):
                value.const_value = tensor
                value.metadata_props.update(notes)
            after, report.changed = before, 0
        self._tell(recovery, before, after, report)

    def _nothing_lost(self, model: ir.Model, ctx: Context) -> bool:
        """Whether the teacher, which alone it is compared with, has the same operators and the very same tensors."""
        method = self._method()
        if ctx.teacher is None or self.teacher is not None or not method.compares:
            return False
        mine, its = (
            [(n.op_type, n.name) for n in m.graph] + [(k, id(v.const_value)) for k, v in m.graph.initializers.items()]
            for m in (model, ctx.teacher)
        )
        return all(loss.teacher for _, loss in self._loss().terms.values()) and mine == its

    def _recovery(self, model: ir.Model, names: list[str], ctx: Context, report: PassReport) -> Recovery:
        method, found = self._method(), parameters.trainable_of(model)
        data = self._data(ctx).bind(model).take(self.samples, ctx.seed)
        teacher = self._teacher(model, ctx)
        rest, held = split(data, self.held_back, ctx.seed)
        loss = self._loss() if method.compares else None
        scope = Scope(
            model=model, before=teacher, ctx=ctx, outputs=tuple(v.name or "" for v in model.graph.outputs), names=names,
            features=(*(loss.features if loss is not None else ()), *method.features),
            settings=self._settings(parameters.bits(model), ctx.seed), scales=set(names) & set(found.scales),
            free=parameters.zeros(model, [n for n in names if n in found.weights], self.keep_zeros),
            limits=parameters.limits(model), device=self.device,
        )  # fmt: skip
        taught = scope.taught
        recovery = Recovery(
            scope, self._method, self._loss if method.compares else None,
            Samples(rest, self.batch_size, ctx.seed, self.device),
            [batch if taught is None else told(batch, taught(batch))
             for batch in tensors(held, self.batch_size, self.device)],
            self._selection(method, ctx),
        )  # fmt: skip
        recovery.store = self._store(model, teacher, data, ctx)
        return recovery

    def _data(self, ctx: Context) -> CalibrationData:
        return ctx.need("data", "recover", "training needs calibration data").allow(self.reads)

    def _selection(self, method: Method, ctx: Context) -> Selection:
        chosen = selected(method, self._name, self.select)
        if chosen == "metric":
            ctx.need("evaluate", "recover", "the option 'select' asks for a metric")
            ctx.need("run", "recover")
        return Selection(chosen, self.ema)

    def _names(self, model: ir.Model, report: PassReport) -> list[str]:
        """What to train; a Skip for each weight that cannot be. Nothing only for a method that may be left out.

        Raises:
            BadRequest: There is nothing, or all weights are integers.
        """
        method, found = self._method(), parameters.trainable_of(model)
        weights = found.weights if self.train in ("weights", "all") else []
        names = [*weights, *(found.scales if self.train in ("scales", "all") else [])]
        if self.train != "scales":
            for name, why in found.refused.items():
                report.skip(name, why)
        integers = bool(found.refused) and not found.matrices and self.train != "scales"
        if not integers:
            names = method.trains(model, names, report)
        if (not names and method.needed) or integers:
            why = next(iter(found.refused.values()), "the graph has no float parameters of that kind")
            raise BadRequest(f"nothing to train: {why}", where="recover: option 'train'")
        return names

    def _teacher(self, model: ir.Model, ctx: Context) -> ir.Model | None:
        method = self._method()
        needed = method.teacher and (not method.compares or self._loss().teacher)
        teacher = ctx.teacher if self.teacher is None else _load(self.teacher)
        if teacher is None and not needed:
            return None
        if teacher is None:
            raise BadRequest(
                "there is no model to train towards", where="recover",
                fix="Set its option 'teacher', give Context(teacher=..), or train with labels alone.",
            )  # fmt: skip
        mine, its = ([v.name for v in m.graph.outputs] for m in (model, teacher))
        if mine != its:
            raise BadRequest(f"the teacher's outputs are {its}, the model's {mine}", where="recover: option 'teacher'")
        if needed:
            randomness.check_comparable(model, "recover", "leave recover out of the recipe")
        return teacher

    @property
    def _name(self) -> str:
        """Of the method."""
        if not isinstance(self.method, str) and len(self.method) != 1:
            raise _wrong("method", f"names {len(self.method)} methods", "Name one.")
        return self.method if isinstance(self.method, str) else next(iter(self.method))

    def _method(self) -> Method:
        """A new one."""
        known, where = catalog.methods(), f"recover: option 'method': {self._name!r}"
        if self._name not in known:
            raise BadRequest("there is no such method", where=where, fix=nearest(self._name, known))
        options = {} if isinstance(self.method, str) else self.method[self._name] or {}
        made: Method = typed(known[self._name], options, where, BadRequest)
        return made

    def _loss(self) -> Weighted:
        """A new one."""
        return make(self.losses or {"mse": {}}, "recover: option 'losses'")

    def _settings(self, bits: int, seed: int) -> Settings:
        usual = self._method().usual_rate(self.steps) or _RATES[min(b for b in _RATES if b >= bits)]
        lr = self.lr if self.lr is not None else usual
        return Settings(
            steps=self.steps, seconds=self.seconds, lr=lr, optimizer=self.optimizer, schedule=self.schedule,
            warmup=self.warmup, weight_decay=self.weight_decay, clip=self.clip, accumulate=self.accumulate,
            precision=self.precision, seed=seed,
        )  # fmt: skip

    def _store(
        self, model: ir.Model, teacher: ir.Model | None, data: CalibrationData, ctx: Context
    ) -> TrainingState | None:
        """The state file; it belongs to these models, these data and these options."""
        if self.state is None and ctx.state is None:
            return None
        said = {k: v for k, v in self.options().items() if k != "state"}
        sha = hashlib.sha256(json.dumps([said, ctx.seed], sort_keys=True, default=str).encode())
        for one in (model, teacher):
            sha.update(checkpoint.key(one, {}, data.digest()).encode() if one is not None else b"")
        path = statefile.place(self.state, ctx.state, key := sha.hexdigest())
        assert path is not None
        return TrainingState(path, key)

    def _tell(self, recovery: Recovery, before: float, after: float, report: PassReport) -> None:
        for name, why in recovery.left.items():
            report.skip(name, why)
        if not report.changed:
            report.skip("the model", "training did not lower the loss on the held-back samples: it is as before")
        kind, sign = ("metric", -1.0) if recovery.selection.by == "metric" else ("loss", 1.0)
        report.metrics |= {
            f"{kind} before": sign * before, f"{kind} after": sign * after,
            "steps": float(sum(o.steps for o in recovery.outcomes)),
            "seconds": round(sum(o.seconds for o in recovery.outcomes), 1),
            "parameters": float(len(recovery.scope.names)), "learning rate": recovery.scope.settings.lr,
        }  # fmt: skip
        if self.mode == "blocks":
            better = sum(o.improved for o in recovery.outcomes)
            report.metrics["blocks improved"] = f"{better} of {len(recovery.outcomes)}"


def _load(path: str) -> ir.Model:
    try:
        return catalog.reader(path)(path)
    except GraphpressError as e:
        where = f"recover: option 'teacher' {path!r}"
        raise BadRequest(f"is no readable model: {e}", where=where, fix="Give a whole .onnx file.") from e


def _wrong(option: str, what: str, fix: str = "") -> BadRequest:
    return BadRequest(what, where=f"recover: option {option!r}", fix=fix)
