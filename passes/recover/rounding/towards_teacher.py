"""Layers rounded one by one, each held to what the float model gives there: errors before it are made up for too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphpress.keys import CORRECTED
from graphpress.observe.moments import Rows
from graphpress.passes.recover.rounding.columns import Solved, round_layer
from graphpress.passes.recover.rounding.drift import Drift, DriftSum, best_share
from graphpress.passes.recover.rounding.gptq_state import State
from graphpress.passes.recover.rounding.grids import QuantizedLayer
from graphpress.passes.recover.rounding.layer_by_layer import LayerByLayer
from graphpress.passes.recover.rounding.waves import Prefix, live
from graphpress.passes.structure.layers.linear import Linear, linear
from graphpress.runner import Arrays


@dataclass
class TowardsTeacher(LayerByLayer):
    """As the layers of GPTQ, towards ``W f``, f what the float model reads there (GPTAQ, arXiv:2504.02692).

    The weight that comes closest to that on the rounded model's inputs is found in closed form, held back by as much
    as held-out samples ask for, and that one is rounded. What is off on average goes into the bias, so that columns
    are settled by moments about the mean.

    Attributes:
        like: The layers of the float model.
        prefix: Of the float model.
    """

    like: dict[str, Linear] = field(default_factory=dict)
    prefix: Prefix | None = None

    def begin(self, batches: Sequence[Arrays]) -> None:
        assert self.ctx.teacher is not None
        teacher = self.ctx.teacher.clone()
        known = {n.name: n for n in teacher.graph}
        self.like = {q.name: found for q in self.layers if (found := _like(q, known.get(q.name)))}
        self.prefix = Prefix.of(teacher, self.execute, batches)

    def wave(self, layers: Sequence[QuantizedLayer], prefix: Prefix, state: State) -> None:
        if self.prefix is not None and any(q.name in self.like for q in layers):
            self.prefix.advance(live(self.prefix.model.graph, [one.node for one in self.like.values()]))
        super().wave(layers, prefix, state)
        for q in layers:
            self.like.pop(q.name, None)

    def moments(self, prefix: Prefix, layers: Sequence[QuantizedLayer]) -> Iterator[tuple[Drift, Drift] | str]:
        """Of what each layer reads: over the samples to fit to, over those held out; or why it cannot be seen."""
        assert self.prefix is not None
        reads = [self._reads(q) for q in layers]
        pairs = list(dict.fromkeys(pair for pair in reads if pair is not None))
        mine = prefix.values(list(dict.fromkeys(here.value for here, _ in pairs)))
        its = self.prefix.values(list(dict.fromkeys(there.value for _, there in pairs)))
        lost = {here: mine.unobserved.get(here.value) or its.unobserved.get(there.value) for here, there in pairs}
        parts = [{pair: DriftSum() for pair in pairs if not lost[pair[0]]} for _ in range(2)]
        for i, (x, f) in enumerate(zip(mine.batches, its.batches, strict=True)):
            for (here, there), total in parts[i >= self.fitted].items():
                total.update(here, x[here.value], f[there.value])
        found = {pair: (total.drift(), parts[1][pair].drift()) for pair, total in parts[0].items()}
        for pair in reads:
            if pair is None:
                yield "the float model has no such layer outside of bodies"
            elif pair not in found:
                yield f"its input cannot be seen: {lost[pair[0]]}"
            else:
                fit, held = found[pair]
                yield fit, held if held.count else fit

    def _reads(self, q: QuantizedLayer) -> tuple[Rows, Rows] | None:
        """What a layer reads in the model and in the float one."""
        like = self.like.get(q.name)
        return None if like is None else (Rows.of(q.layer.node), Rows.of(like.node))

    def settle(self, q: QuantizedLayer, seen: Drift, unseen: Drift) -> float:
        """Round one layer and correct its bias; the error left, as a share of rounding to nearest's."""
        options, like = self.options, self.like[q.name]
        weight = like.weight().astype(np.float32).reshape(len(like.weight()), -1)
        wanted = best_share(weight, seen, unseen)
        if q.pruned:
            wanted = np.where(q.weight() != 0, wanted, 0)
        order = {"act_order": options.act_order, "on": options.device}
        by = Solved.of(seen.moments, damping=options.damping, **order)
        rounded, params = round_layer(
            q, by, block=options.block, observer=options.observer, judge=unseen.moments,
            wanted=wanted.astype(np.float32), **order,
        )  # fmt: skip
        nearest = q.rounded(q.params())
        before, after = (unseen.error(weight, made) for made in (nearest, rounded))
        better = after <= before
        chosen, grid = (rounded, params) if better else (nearest, q.params())
        q.write(chosen, grid)
        shift, bias = seen.bias(weight, chosen), like.bias()
        if np.isfinite(shift).all():
            q.layer.node.metadata_props[CORRECTED] = "bias"
            self.biases[q.name] = shift if bias is None else bias + shift
            q.layer.set_bias(self.biases[q.name])
        return after / before if better and before else 1.0


def _like(q: QuantizedLayer, node: ir.Node | None) -> Linear | None:
    """A node of the float model as the layer that it is before weights are changed; None where it is none."""
    found = linear(node) if node is not None and node.op_type == q.layer.node.op_type else ""
    return None if isinstance(found, str) or found.shape != q.layer.shape else found
