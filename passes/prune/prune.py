"""n:m pruning: of each m neighbours along the reduction axis of a weight keep n."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Ignores, Pass, PassReport
from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.keys import SPARSITY
from graphpress.observe.moments import Collected, collect_moments
from graphpress.passes.prune import methods
from graphpress.passes.prune.asked_pattern import checked
from graphpress.passes.prune.eligible import eligible_layers
from graphpress.passes.structure.layers.linear import Linear
from graphpress.types import Numerics, Stage


@dataclass(frozen=True)
class Prune(Pass, Ignores):
    """Set all but n of each m neighbouring weights to zero, in MatMul, Gemm and Conv; layers note their pattern.

    Neighbours lie along the reduction axis: input channels of a matrix, and of a convolution at each place of its
    kernel, which is where a GEMM over channels-last pictures, and so a sparse tensor core, has its groups. Runs before
    quantization; symmetric quantization keeps zeros, and the verifier holds the pattern through every later pass.

    Attributes:
        n, m: Of each m neighbours n are kept.
        method: ``magnitude`` keeps the largest, without data; ``wanda`` those of the largest product with the norm of
            their input (Sun et al., 2023, section 3); ``sparsegpt`` chooses with second-order statistics and lets
            what is left make up for what goes (Frantar and Alistarh, 2023, section 3).
        damping: Of sparsegpt: share of the mean curvature added to all.
        samples: Most samples of the data to look at.
        keep: Layers left dense: ``first`` (that nothing with weights stands before), ``last`` (behind which none does).
        op_types: Only these operators; empty: MatMul, Gemm and Conv.
        ignore: Selectors of layers that stay dense: exact names, globs, or ``re:`` and a regular expression.
        min_inputs: Layers with fewer input channels stay dense.
    """

    n: int = 2
    m: int = 4
    method: Literal["magnitude", "wanda", "sparsegpt"] = "magnitude"
    damping: float = 0.01
    samples: int = 128
    keep: tuple[Literal["first", "last"], ...] = ("first", "last")
    op_types: tuple[Literal["MatMul", "Gemm", "Conv"], ...] = ()
    ignore: tuple[str, ...] = ()
    min_inputs: int = 8

    name = "prune"
    numerics = Numerics.LOSSY
    needs = (Stage.FLOAT,)

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        pattern = checked(self.n, self.m, self.name)
        if not self.damping > 0:
            raise BadRequest(f"{self.damping} is not positive", where="prune: option 'damping'", fix="Such as 0.01.")
        layers = eligible_layers(model, self, report)
        moments = self._moments(model, ctx, layers)
        lost: list[float] = []
        pruned = 0
        for view in ctx.progress(layers, "prune", len(layers)):
            weight = view.weight()
            if not np.isfinite(weight.astype(np.float32)).all():
                report.skip(view.node, "the weight holds NaN or infinity")
                continue
            seen = moments.get(view.node.name or "") if moments is not None else None
            if moments is not None and seen is None:
                report.skip(view.node, moments.unobserved.get(view.node.name or "", "nothing was seen of its input"))
                continue
            new = methods.pruned(weight, self.n, self.m, self.method, seen, self.damping)
            if seen is not None:
                lost.append(seen.error(new - weight) / max(seen.error(weight), 1e-300))
            view.set_weight(new)
            view.node.metadata_props[SPARSITY] = pattern
            report.changed += 1
            pruned += weight.size
        report.metrics |= {"layers": float(report.changed), "weights pruned": pruned / max(_weights(model), 1)}
        if lost:
            report.metrics["output error"] = float(np.mean(lost))

    def _moments(self, model: ir.Model, ctx: Context, layers: list[Linear]) -> Collected | None:
        if self.method == "magnitude" or not layers:
            return None
        by, why = "prune: option 'method'", f"{self.method} needs calibration data"
        data, run = ctx.need("data", by, why, "choose method: magnitude"), ctx.need("run", by)
        names = [v.node.name or "" for v in layers]
        return collect_moments(model, names, data.take(self.samples, ctx.seed), run, progress=ctx.progress)


def _weights(model: ir.Model) -> int:
    """Elements of all float constants of at least two axes."""
    tensors = [t for g in edit.graphs(model) if isinstance(g, ir.Graph) for v in g.initializers.values()
               if (t := v.const_value) is not None]  # fmt: skip
    return sum(t.size for t in tensors if len(t.shape) > 1 and t.dtype.is_floating_point())
