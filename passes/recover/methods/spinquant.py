"""``spinquant``: the bases of residual streams and attention values, turned so that quantization costs little.

(SpinQuant, arXiv:2405.16406: R1 and R2, learned with the weights in float and the activations quantized, since GPTQ
takes care of the weights behind it.) Every basis begins as it stands, behind ``rotate`` a Hadamard matrix's, and stays
orthogonal: a step is a skew matrix A, and the basis becomes R (1 - A/2)^-1 (1 + A/2). Steps are Adam's (Cayley ADAM,
arXiv:2002.01113) in place of the paper's SGD, whose rate depends on the size of the loss. What is learned is merged
into the weights as ``rotate`` does it, in float64 and rounded once; their scales are found anew then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx_ir as ir

from graphpress.contracts import PassReport
from graphpress.passes.recover.engine.roles import TrainedRole
from graphpress.passes.recover.engine.scope import Scope
from graphpress.passes.recover.engine.state import Saved
from graphpress.passes.recover.engine.student import typed
from graphpress.passes.recover.losses.base import Tensors
from graphpress.passes.recover.methods.base import Select, Update
from graphpress.passes.recover.methods.distill import Distill
from graphpress.passes.recover.rotations.learnable_bases import bases_of, placed
from graphpress.passes.recover.rotations.ranges import pass_on
from graphpress.passes.recover.rotations.turned import Turned, substituted
from graphpress.passes.recover.rounding.grids import quantized_layers
from graphpress.passes.recover.rounding.learning import past_pairs
from graphpress.passes.structure.channels.ledger import Ledger, turn

if TYPE_CHECKING:
    import torch

_RATE = 0.06  # of Adam, over the root of the size: then a step turns by as much in every size


@dataclass
class Spinquant(Distill):
    """See the head of this file. The losses are those of the pass.

    Attributes:
        residual: Learn those of residual streams (R1).
        heads: Learn those of attention values, one for all heads of an attention (R2).
        ranges: Let gradients pass through the range of a token too, so that its largest element is made smaller.
    """

    residual: bool = True
    heads: bool = True
    ranges: bool = True

    blocks: ClassVar[bool] = False
    needed: ClassVar[bool] = False
    selects: ClassVar[tuple[Select, ...]] = ("held", "metric", "last")

    def usual_rate(self, steps: int | None) -> float:
        return _RATE

    def trains(self, model: ir.Model, names: Sequence[str], report: PassReport) -> list[str]:
        skipped = len(report.skips)
        found = bases_of(model, report, streams=self.residual, values=self.heads)
        if not found and len(report.skips) == skipped:
            report.skip("the model", "it has no residual stream and no attention whose basis could be learned")
        values = [h.node.inputs[h.slot] for basis in found for h in placed(model, basis)]
        return list(dict.fromkeys(v.name or "" for v in values if v is not None))

    def setup(self, scope: Scope) -> dict[str, TrainedRole]:
        self.bases = bases_of(scope.model, PassReport(), streams=self.residual, values=self.heads)
        copy = past_pairs(typed(scope.model), quantized_layers(scope.model, PassReport()))
        if self.ranges:
            pass_on(copy)
        self.turned = [Turned(basis.size, scope.device) for basis in self.bases]
        module = substituted(copy, self.bases, self.turned, scope)
        self.watch(scope, module)
        learned = {basis.name: one.step for basis, one in zip(self.bases, self.turned, strict=True)}
        rates = {basis.name: basis.size**-0.5 for basis in self.bases}
        settings = replace(scope.settings, optimizer="adam", weight_decay=0.0)
        return {"bases": TrainedRole(learned, settings, rates, module=module)}

    def losses(self, batch: Tensors, update: Update) -> Mapping[str, torch.Tensor]:
        return {"bases": self.total(self.see(batch, update), update)}

    def after_step(self, update: Update) -> None:
        super().after_step(update)
        for one in self.turned:
            one.take()

    def state(self) -> Saved:
        tensors = {basis.name: one.matrix.clone() for basis, one in zip(self.bases, self.turned, strict=True)}
        return Saved(tensors, super().state().facts)

    def load(self, saved: Saved) -> None:
        super().load(saved)
        for basis, one in zip(self.bases, self.turned, strict=True):
            one.matrix = saved.tensors[basis.name].to(one.matrix)

    def write(self, model: ir.Model, roles: Mapping[str, TrainedRole]) -> None:
        """Turn the constants; what is quantized gets the scales that its format finds for it."""
        ledger, encoders = Ledger(), set[ir.Node]()
        for basis, one in zip(self.bases, self.turned, strict=True):
            matrix = one.matrix.cpu().numpy()
            if np.array_equal(matrix, np.eye(basis.size)):
                continue
            change = turn(matrix)
            for holder in placed(model, basis):
                ledger.add(holder, change, mixes=True)
                encoders.add(holder.node)
        ledger.write(equal=False)
        for q in quantized_layers(model, PassReport()):
            if q.pair.encode in encoders:
                rows = q.weight()
                params = q.quantizer.fit(q.stored(rows), q.scheme, tables=q.params().tables)
                q.write(rows, q.cast(params))


METHOD = Spinquant
