"""Put the bodies of a model's own functions in the place of their calls, where passes see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph.inline import inline, takes_graphs
from graphpress.ops.base import DOMAIN
from graphpress.types import Numerics


@dataclass(frozen=True)
class InlineFunctions(Pass):
    """Replace every call of a function that the model brings by the nodes of its body; operators of the dialect stay.

    Names of a body stay unless another node or value has them. Functions that take a graph as an attribute stay.
    """

    name: ClassVar[str] = "inline-functions"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        """Rewrite ``model``.

        Raises:
            Unsupported: A body is of another opset than the model, and means another thing there.
        """
        kept = {f.identifier() for f in takes_graphs(model)}
        for domain, name, _ in sorted(kept):
            report.skip(f"function {domain}::{name}", "it takes a graph as an attribute")
        report.changed = inline(model, lambda f: f.domain != DOMAIN and f.identifier() not in kept)
