"""Methods that learn how weights are rounded: what they have in common, on the one engine.

The student is the graph with each such weight read past its Q -> DQ; what the layer reads is put in at every call, from
what is learned (``learned``). What is measured, kept and moved on with is the hard rounding: what would come out.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
import onnx_ir as ir

from graphpress.contracts import PassReport
from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.graph.quantized import SCALE, decodes, unquantized
from graphpress.keys import ROLE
from graphpress.passes.recover.engine.roles import TrainedRole
from graphpress.passes.recover.engine.scope import Scope
from graphpress.passes.recover.engine.student import Module, typed
from graphpress.passes.recover.losses.base import Seen, Tensors
from graphpress.passes.recover.methods.base import Update
from graphpress.passes.recover.methods.distill import Distill
from graphpress.passes.recover.rounding import grids
from graphpress.passes.recover.rounding.grids import QuantizedLayer
from graphpress.passes.recover.rounding.learned import LearnedRounding

if TYPE_CHECKING:
    import torch

Observer = Literal["keep", "minmax", "mse"]


@dataclass
class LearnsRounding(Distill):
    """The losses are those of the pass: by default the squared error at the end of the block.

    Attributes:
        observer: How scales are found at first: ``keep`` those of the graph; ``minmax`` or ``mse`` of the weights;
            None: as suits the method, ``mse`` where it says nothing else.
    """

    observer: Observer | None = None

    blocks: ClassVar[bool] = True
    rewrites: ClassVar[bool] = True
    scales: ClassVar[bool] = False  # whether those of weights are learned too
    activations: ClassVar[bool] = False  # whether steps of activations are learned too

    def __post_init__(self) -> None:
        for option in ("reach_lr", "scale_lr", "step_lr"):
            given = getattr(self, option, None)
            if given is not None and not 0 < given < math.inf:
                raise BadRequest(f"{given} is not positive", where=f"recover: option 'method': option {option!r}")

    @property
    def dropped(self) -> float:
        """Chance that an element of a quantized activation stays float in training."""
        return 0.0

    def trains(self, model: ir.Model, names: Sequence[str], report: PassReport) -> list[str]:
        wanted = set(names)
        weights = [n for q in takes(model, report, self.scales) if (n := q.layer.weight_value.name or "") in wanted]
        return [*weights, *(n for n in (_steps(model) if self.activations else ()) if n in wanted)]

    def begun(self, layer: QuantizedLayer) -> Observer:
        """How the scales of a layer are found at first."""
        return self.observer or "mse"

    @abstractmethod
    def learned(self, layer: QuantizedLayer, scope: Scope) -> LearnedRounding:
        """What is learned of one weight."""

    @abstractmethod
    def roles_of(self, found: Sequence[LearnedRounding], scope: Scope) -> dict[str, TrainedRole]:
        """What trains it."""

    def setup(self, scope: Scope) -> dict[str, TrainedRole]:
        names = set(scope.names)
        layers = [q for q in takes(scope.model, PassReport(), self.scales) if q.layer.weight_value.name in names]
        if not layers:
            raise BadRequest("no weight of a linear layer stands before Q -> DQ", where="recover: option 'method'")
        self.steps = list[str]()
        self.found: list[LearnedRounding] = [self.learned(q, scope) for q in layers]
        self.hard = False
        copy = past_pairs(scope.model, layers)
        chance = insert_drops(copy) if self.dropped else ""
        self.module = scope.build(copy)
        self.dropping = self.module.own(chance) if chance in self.module.parameters else None
        self.substituted = Substituted(self.module, self.found, self.is_hard)
        self.watch(scope, self.substituted)
        return self.roles_of(self.found, scope)

    def measure(self, batch: Tensors, update: Update) -> torch.Tensor | None:
        self.hard = True
        self.chance(0.0)
        try:
            return self.judged(self.see(batch, update))
        finally:
            self.hard = False

    def judged(self, seen: Seen) -> torch.Tensor:
        """The fixed measure that decides what is kept."""
        return self.judge(seen)

    def is_hard(self, one: LearnedRounding) -> bool:
        """Whether a weight is read as it would come out."""
        return self.hard

    def chance(self, share: float) -> None:
        """From now on, of the elements of quantized activations so many stay float."""
        import torch

        if self.dropping is not None:
            with torch.no_grad():
                self.dropping.fill_(share)

    def steps_role(self, scope: Scope, lr: float) -> TrainedRole | None:
        """Of the steps of activations to be trained, at a rate that is relative to them; None: there are none."""
        self.steps = [n for n in scope.names if n in scope.scales and n in self.module.parameters]
        if not self.steps:
            return None
        role = scope.role(self.module, self.steps)
        settings = replace(scope.settings, lr=lr, optimizer="adam", schedule="cosine", warmup=0.0, clip=None)
        sizes = {n: float(p.detach().abs().mean()) for n, p in role.parameters.items()}
        return replace(role, settings=settings, rates=sizes)

    def write(self, model: ir.Model, roles: Mapping[str, TrainedRole]) -> None:
        self.module.write(model, self.steps)
        known = {q.layer.weight_value.name: q for q in takes(model, PassReport(), self.scales)}
        for one in self.found:
            one.write(known[one.name])


class Computed(Protocol):
    """A weight that is computed from what is learned."""

    @property
    def name(self) -> str: ...

    def tensor(self, hard: bool) -> torch.Tensor: ...


class Substituted(Module):
    """A module that reads, in place of some of its parameters, weights that are computed anew at each call."""

    def __init__(self, module: Module, found: Sequence[Computed], hard: Callable[[Any], bool]) -> None:
        super().__init__(module.module, module.inputs, module.outputs, module.parameters, module.forms)
        paths = {id(p): path for path, p in module.module.named_parameters(remove_duplicate=False)}
        self.given = [(paths[id(self.parameters[one.name])], one) for one in found]
        self.hard = hard

    def __call__(self, batch: Tensors) -> dict[str, torch.Tensor]:
        import torch

        weights = {path: self._as_kept(one) for path, one in self.given}
        given = torch.func.functional_call(self.module, weights, tuple(batch[name] for name in self.inputs))
        return dict(zip(self.outputs, given, strict=True))

    def _as_kept(self, one: Computed) -> torch.Tensor:
        tensor, parameter = one.tensor(self.hard(one)), self.parameters[one.name]
        return tensor.t() if self.forms[one.name] == "transpose" else tensor.reshape(parameter.shape)


def takes(model: ir.Model, report: PassReport, scales: bool = False) -> list[QuantizedLayer]:
    """Layers of the main graph whose rounding (and scales, on request) can be learned; a Skip for each other weight."""
    found = []
    for q in grids.quantized_layers(model, report):
        why = _refusal(q, model)
        if not why and scales and q.quantizer.beside:
            why = f"{q.quantizer.name} has more for each scale than the scale itself, which are not learned together"
        if why:
            report.skip(q.layer.node, why)
        else:
            found.append(q)
    return found


def _refusal(q: QuantizedLayer, model: ir.Model) -> str:
    if q.layer.node.graph is not model.graph or q.layer.weight_value.name not in model.graph.initializers:
        return "it is in a body, whose weights are not trained"
    pair = {q.pair.encode, q.pair.decode}
    operands = [v for node in pair for v in node.inputs[1:] if v is not None]
    if any(u.node not in pair for v in operands for u in v.uses()):
        return "its scale is shared with another tensor"
    if q.layer.weight_value.dtype is not ir.DataType.FLOAT:
        return f"its weight is {q.layer.weight_value.dtype}, and rounding is learned in float32"
    if q.scheme.ir_dtype.is_floating_point():
        return f"its codes are {q.scheme.dtype}, not counted from one number to the next"
    codes = np.arange(q.scheme.qmin, q.scheme.qmax + 1)
    if len(codes) > len(every := q.quantizer.every_code(q.scheme)) and (np.diff(every) > 1).any():
        return f"of its codes, {', '.join(map(str, every))}, some between are none"
    shape = (*q.params().scale.shape, len(codes))
    params = q.params()
    spread = params.mapped(lambda array: array[..., None])
    values = q.quantizer.values(np.broadcast_to(codes, shape), spread, q.scheme)
    return "" if (np.diff(values, axis=-1) >= 0).all() else "its codes do not ascend with their numbers"


def past_pairs(model: ir.Model, layers: Sequence[QuantizedLayer]) -> ir.Model:
    """A copy in which some layers read their float weights."""
    copy, names = typed(model).clone(), {q.name for q in layers}
    for q in grids.quantized_layers(copy, PassReport()):
        if q.name in names:
            edit.set_input(q.layer.node, 1, q.pair.source)
    return copy


def _steps(model: ir.Model) -> list[str]:
    """Scales of values that are no constants."""
    decoders = (n for n in model.graph if decodes(n) and not edit.is_constant(unquantized(n.outputs[0])))
    scales = (n.inputs[SCALE] for n in decoders)
    names = dict.fromkeys(v.name or "" for v in scales if v is not None)
    return [n for n in names if n in model.graph.initializers]


def insert_drops(model: ir.Model) -> str:
    """Let each quantized activation keep elements of what it is made of, by a chance: the name of that initializer."""
    chance = edit.add_const(model.graph, np.zeros((), np.float32), "dropping")
    chance.metadata_props[ROLE] = "parameter"
    for node in [n for n in model.graph if decodes(n)]:
        source, value = unquantized(node.outputs[0]), node.outputs[0]
        if source is None or edit.is_constant(source) or source.dtype is not ir.DataType.FLOAT:
            continue
        drawn = edit.new_node("RandomUniformLike", [source], {"dtype": 1}, origin=node, after=node)
        stays = edit.new_node("Less", [drawn.outputs[0], chance], origin=node, after=drawn)
        mixed = edit.new_node("Where", [stays.outputs[0], source, value], origin=node, after=stays)
        for made, dtype in ((drawn, None), (stays, ir.DataType.BOOL), (mixed, None)):
            edit.like(made.outputs[0], value, dtype)
        edit.replace(value, mixed.outputs[0])
        edit.set_input(mixed, 2, value)
    return chance.name or ""
