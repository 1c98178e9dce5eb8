"""``nupes``: the exponent of each layer and the codes of its weights, learned together (NUPES, arXiv:2308.05600).

For weights in the format ``power``, which ``quantize`` gives one exponent for all, or one found without data
(PowerQuant). Exponents are learned as logarithms; codes by offsets in the power domain, which are not held to one step;
and the ends of ranges with them. The paper does not say its relaxation in full: here rounding passes gradients on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import onnx_ir as ir

from graphpress.contracts import PassReport
from graphpress.passes.quantizers import power
from graphpress.passes.recover.engine.constraints import Within
from graphpress.passes.recover.engine.roles import TrainedRole
from graphpress.passes.recover.engine.scope import Scope
from graphpress.passes.recover.losses.base import Tensors
from graphpress.passes.recover.methods.base import Update
from graphpress.passes.recover.rounding.grids import QuantizedLayer
from graphpress.passes.recover.rounding.learning import LearnsRounding, takes
from graphpress.passes.recover.rounding.powered import PoweredRounding

if TYPE_CHECKING:
    import torch

_RATE = 1e-2  # of offsets, in steps
_SPAN = 0.5  # of the rate of exponents: that of ranges
_NARROWER, _WIDER = -0.7, 0.2  # logarithms of what a range may become


@dataclass
class Nupes(LearnsRounding):
    """See the head of this file.

    Attributes:
        observer: How scales are found at first: ``keep`` those of the graph; ``minmax`` or ``mse`` (None) of the
            weights.
        step_lr: Learning rate of the logarithms of exponents; that of ranges is half of it.
    """

    step_lr: float = 1e-2

    scales: ClassVar[bool] = True

    def usual_rate(self, steps: int | None) -> float:
        return _RATE

    def trains(self, model: ir.Model, names: Sequence[str], report: PassReport) -> list[str]:
        wanted = set(super().trains(model, names, report))
        found = []
        for q in takes(model, PassReport(), self.scales):
            name = q.layer.weight_value.name or ""
            if name in wanted and isinstance(q.quantizer, power.Power):
                found.append(name)
            elif name in wanted:
                why = f"its levels are {q.quantizer.name}, and only those of power have an exponent"
                report.skip(q.layer.node, why)
        return found

    def learned(self, layer: QuantizedLayer, scope: Scope) -> PoweredRounding:
        return PoweredRounding(layer, self.begun(layer), scope.device)

    def roles_of(self, found: Sequence[Any], scope: Scope) -> dict[str, TrainedRole]:
        import torch

        offsets = {f"{one.name}: offset": one.offset for one in found}
        exponents = {f"{one.name}: exponent": one.logarithm for one in found}
        spans = {f"{one.name}: span": one.span for one in found}
        low, high = (math.log(end) for end in power.RANGE)
        bounds = [Within(p, torch.full_like(p, low), torch.full_like(p, high)) for p in exponents.values()]
        bounds += [Within(p, torch.full_like(p, _NARROWER), torch.full_like(p, _WIDER)) for p in spans.values()]
        settings = replace(scope.settings, optimizer="adam", schedule="cosine", warmup=0.0, clip=None)
        slower, rates = replace(settings, lr=self.step_lr), dict.fromkeys(spans, _SPAN)
        return {
            "student": TrainedRole(offsets, settings, module=self.substituted),
            "curves": TrainedRole(exponents | spans, slower, rates, bounds, self.substituted),
        }

    def losses(self, batch: Tensors, update: Update) -> Mapping[str, torch.Tensor]:
        return dict.fromkeys(update.roles, self.total(self.see(batch, update), update=update))


METHOD = Nupes
