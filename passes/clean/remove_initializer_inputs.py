"""Initializers that are also graph inputs become plain constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.keys import OPTION
from graphpress.types import Numerics


@dataclass(frozen=True)
class RemoveInitializerInputs(Pass):
    """Take the inputs that have a default value out of the signature, so that their value is fixed.

    Old exporters list every weight as an input too. A caller could override such a weight, so nothing that needs a
    constant (folding, quantizing) applies to it. Callers that do override one lose that: this is the only clean pass
    that changes a signature, and no output changes for all others. An input that a pass made for callers to choose by,
    such as the budget of Adaptive Computation Modules, stays.
    """

    name: ClassVar[str] = "remove-initializer-inputs"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        inputs = model.graph.inputs
        kept = [v for v in inputs if not v.is_initializer() or OPTION in v.metadata_props]
        report.changed = len(inputs) - len(kept)
        if report.changed:
            inputs.clear()
            inputs.extend(kept)
            model.ir_version = max(model.ir_version or 0, 4)
