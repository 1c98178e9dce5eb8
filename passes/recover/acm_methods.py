"""The three trainings of ``train-acm`` as methods of the engine: learners alone, gates alone, the whole model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import onnx_ir as ir

from graphpress.errors import BadRequest
from graphpress.keys import ORIGIN
from graphpress.passes.acm.site import PARAMETERS, AcmSite
from graphpress.passes.acm.usage import open_price
from graphpress.passes.recover import acm_terms as terms
from graphpress.passes.recover.acm_terms import PRICE, Layer
from graphpress.passes.recover.engine.roles import TrainedRole
from graphpress.passes.recover.engine.scope import Scope
from graphpress.passes.recover.losses.base import Seen, Tensors
from graphpress.passes.recover.methods.base import Method, Update
from graphpress.passes.recover.methods.distill import Distill
from graphpress.passes.structure.layers import ffn

if TYPE_CHECKING:
    import torch

_SHARPNESS = 20.0  # of scores: how much a squared error, as a share of the output's power, counts
_GATES = ("gate", "gate_bias")


@dataclass
class Alone(Method):
    """Parts of all layers on what the layers had and gave in the model as it was.

    Attributes:
        sites: The ACMs.
        places: What each layer reads and gives there.
    """

    sites: Sequence[AcmSite]
    places: Sequence[tuple[str, str]]

    trained: ClassVar[tuple[str, ...]]

    def setup(self, scope: Scope) -> dict[str, TrainedRole]:
        import torch

        self.scope, self.layers = scope, list[Layer]()
        for s, (reads, gives) in zip(self.sites, self.places, strict=True):
            parameters = {
                n: torch.nn.Parameter(torch.from_numpy(s.array(n).copy()), requires_grad=n in self.trained)
                for n in PARAMETERS
            }
            self.layers.append(Layer(s, parameters, reads, gives))
        return {
            "layers": TrainedRole({f"{y.site.name}.{n}": y.parameters[n] for y in self.layers for n in self.trained})
        }

    def losses(self, batch: Tensors, update: Update) -> Mapping[str, torch.Tensor]:
        return {"layers": self.mean(self.around(batch))}

    def measure(self, batch: Tensors, update: Update) -> torch.Tensor | None:
        return self.mean(self.around(batch))

    def around(self, batch: Tensors) -> Tensors:
        """The teacher's values around all layers."""
        import torch

        assert self.scope.taught is not None
        with torch.no_grad():
            return {**batch, **self.scope.taught(batch)}

    def mean(self, values: Tensors) -> torch.Tensor:
        """What is made small, the mean over layers."""
        parts = self.parts(values)
        return sum(parts[1:], start=parts[0]) / len(parts)

    @abstractmethod
    def parts(self, values: Tensors) -> list[torch.Tensor]:
        """By layer."""

    def write(self, model: ir.Model, roles: Mapping[str, TrainedRole]) -> None:
        for layer in self.layers:
            for name in self.trained:
                layer.site.set(name, layer.parameters[name].detach().numpy())


@dataclass
class Learners(Alone):
    """What comes out after each number of learners, towards what the layer gave."""

    trained = ("w1", "b1", "w2", "b2")

    def parts(self, values: Tensors) -> list[torch.Tensor]:
        return [terms.prefix_error(y.prefixes(values[y.reads])[y.site.least :], values[y.gives]) for y in self.layers]


@dataclass
class Gates(Alone):
    """How many learners each token needs.

    Attributes:
        held: By whose mean errors the gates start.
        budgets: At each of which gates learn the number that leaves the least error for the work; None: by ``ratio``.
        ratio: The improvement by which one learner more pays.
    """

    held: Sequence[Tensors]
    budgets: Sequence[float] | None
    ratio: float

    trained = _GATES

    def setup(self, scope: Scope) -> dict[str, TrainedRole]:
        import torch

        roles = super().setup(scope)
        with torch.no_grad():
            seen = [self.around(piece) for piece in self.held]
            for y in self.layers:  # which choose the same for all tokens
                found = [terms.errors(y, t[y.reads], t[y.gives]).square().flatten(0, -2) for t in seen]
                mean = torch.cat(found).mean(0)[y.site.least :]
                y.parameters["gate"].zero_()
                y.parameters["gate_bias"].copy_(-_SHARPNESS * mean)
        return roles

    def parts(self, values: Tensors) -> list[torch.Tensor]:
        x = [values[y.reads] for y in self.layers]
        errors = [terms.errors(y, v, values[y.gives]) for y, v in zip(self.layers, x, strict=True)]
        return [
            terms.negative_likelihood(y, v, _SHARPNESS * price, label)
            for price, wanted in self._labels(errors)
            for y, v, label in zip(self.layers, x, wanted, strict=True)
        ]

    def _labels(self, errors: Sequence[torch.Tensor]) -> list[tuple[float, list[torch.Tensor]]]:
        """(price, labels of each layer) to be learned."""
        if self.budgets is None:
            return [
                (0.0, [terms.labels(e, self.ratio, y.site.least) for e, y in zip(errors, self.layers, strict=True)])
            ]
        prices = [terms.price_of(b, errors, self.layers) for b in self.budgets if b < 1]
        return [
            (p, [terms.worth(e, p, y.site.least) for e, y in zip(errors, self.layers, strict=True)]) for p in prices
        ]


@dataclass
class Whole(Distill):
    """The outputs towards the former ones; a batch says at which budget, and at which price gates keep it.

    Attributes:
        sites: The ACMs.
        learners_only: Whether all other parameters stay.
        gate_rate: Factor on the learning rate of gates.
        budget: See ``acm_terms.GateTerms``.
        entropy: See there.
        diversity: See there.
    """

    sites: Sequence[AcmSite]
    learners_only: bool
    gate_rate: float
    budget: float
    entropy: float
    diversity: float

    def setup(self, scope: Scope) -> dict[str, TrainedRole]:
        opened, self.price = open_price(scope.model)
        fed = {v.name for v in scope.model.graph.inputs}
        reads = [n for s in self.sites if (n := s.input.name or "") not in fed]
        student = replace(scope, features=(*scope.features, *reads)).build(opened)
        own = {s.value(n).name or "" for s in self.sites for n in PARAMETERS}
        names = [n for n in student.parameters if n in own or not self.learners_only]
        role = self.compare(replace(scope, names=names), student)
        gates = {s.value(n).name or "" for s in self.sites for n in _GATES}
        layers = (
            Layer(s, {n: student.parameters[s.value(n).name or ""] for n in PARAMETERS}, "", "") for s in self.sites
        )
        self.terms = terms.GateTerms(tuple(layers), self.budget, self.entropy, self.diversity)
        return {"student": replace(role, rates={n: self.gate_rate for n in names if n in gates})}

    def see(self, batch: Tensors, update: Update) -> Seen:
        seen = super().see({**batch, self.price: batch[PRICE]}, update)
        return replace(seen, batch=batch)

    def losses(self, batch: Tensors, update: Update) -> Mapping[str, torch.Tensor]:
        seen = self.see(batch, update)
        return {"student": self.terms.add(self.total(seen, update), seen)}

    def measure(self, batch: Tensors, update: Update) -> torch.Tensor | None:
        seen = self.see(batch, update)
        return self.terms.add(self.judge(seen), seen)


def places(sites: Sequence[AcmSite], teacher: ir.Model) -> list[tuple[str, str]]:
    """(what it reads, what it gives) of the layer that each ACM stands for.

    Raises:
        BadRequest: The teacher has no such layer.
    """
    anatomy = ffn.layer_blocks(teacher.graph)
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
