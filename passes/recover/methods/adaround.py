"""``adaround``: each weight up or down, layer by layer, so that the layer's outputs stay close (arXiv:2004.10568).

The layers of a block take their turns in its order and share its steps; each reads what the rounded ones before it give
and is held to the teacher's values behind the activation that follows it. The choice is a stretched sigmoid between the
two neighbours, which a term that grows drives to one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import onnx_ir as ir

from graphpress.contracts import PassReport
from graphpress.errors import BadRequest
from graphpress.passes.recover.engine.roles import TrainedRole
from graphpress.passes.recover.engine.schedule import Settings
from graphpress.passes.recover.engine.scope import Scope
from graphpress.passes.recover.losses.base import Tensors
from graphpress.passes.recover.methods.base import Update
from graphpress.passes.recover.rounding.by_height import ChoosesNeighbours
from graphpress.passes.recover.rounding.learning import takes

if TYPE_CHECKING:
    import torch

_ACTIVATIONS = {
    "Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "Tanh", "Gelu", "HardSwish", "HardSigmoid", "Elu", "Mish", "Swish",
}  # fmt: skip


@dataclass
class Adaround(ChoosesNeighbours):
    """See the head of this file and ``ChoosesNeighbours``; steps are those of a block."""

    at_once: ClassVar[bool] = False

    def check(self, settings: Settings) -> None:
        if settings.steps is None:
            raise BadRequest("layers take turns by steps", where="recover: method 'adaround'", fix="Set steps.")

    def inside(self, scope: Scope) -> tuple[str, ...]:
        names, known = set(scope.names), _floats(scope.before)
        layers = [q for q in takes(scope.model, PassReport()) if q.layer.weight_value.name in names]
        self.ends = [_end(q.layer.output, known) for q in layers]
        return tuple(dict.fromkeys(e for e in self.ends if e and e not in scope.outputs))

    def roles_of(self, found: Sequence[Any], scope: Scope) -> dict[str, TrainedRole]:
        self.inside(scope)
        self.names, self.budget = [f"layer {i}" for i in range(len(found))], scope.settings.steps or len(found)
        return {
            name: TrainedRole({f"{one.name}: rounding": one.logit}, self.settings(scope), module=self.substituted)
            for name, one in zip(self.names, found, strict=True)
        }

    def cadence(self, number: int) -> Sequence[str]:
        return [self.names[self._turn(number)]]

    def _turn(self, number: int) -> int:
        return min(number * len(self.names) // self.budget, len(self.names) - 1)

    def is_hard(self, one: Any) -> bool:
        return super().is_hard(one) or self.found.index(one) < self.turn

    def losses(self, batch: Tensors, update: Update) -> Mapping[str, torch.Tensor]:
        self.turn = self._turn(update.number)
        first, end = (-(-i * self.budget // len(self.names)) for i in (self.turn, self.turn + 1))
        done = (update.number - first) / max(end - first, 1)
        seen, here = self.see(batch, update), self.ends[self.turn]
        apart = self.apart(replace(seen, outputs=(here,) if here else seen.outputs), partial(self.total, update=update))
        return {self.names[self.turn]: apart + self.drawn([self.found[self.turn]], done)}


def _floats(before: ir.Model | None) -> set[str]:
    """Values of the teacher."""
    nodes = () if before is None else before.graph
    return {v.name or "" for node in nodes for v in node.outputs}


def _end(value: ir.Value, known: set[str]) -> str:
    """What a layer gives behind the activation that alone reads it, if the teacher has it; else nothing."""
    readers = [u.node for u in value.uses()]
    if len(readers) == 1 and not value.is_graph_output() and readers[0].op_type in _ACTIVATIONS:
        behind = readers[0].outputs[0].name or ""
        if behind in known:
            return behind
    return (value.name or "") if value.name in known else ""


METHOD = Adaround
