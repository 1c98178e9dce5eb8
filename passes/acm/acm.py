"""Put ``graphpress::ACM`` in the place of feed-forward blocks and lone projections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Ignores, Pass, PassReport
from graphpress.errors import BadRequest
from graphpress.graph import edit, opsets, selectors
from graphpress.keys import SCOPE
from graphpress.observe.moments import Moments, collect_moments
from graphpress.ops.acm import OP
from graphpress.ops.base import DOMAIN, attach
from graphpress.passes.acm import site
from graphpress.passes.acm.learners import CutLearners, block_learners, projection_learners
from graphpress.passes.structure.layers import ffn
from graphpress.passes.structure.layers.chosen_rows import chosen_rows
from graphpress.types import Numerics, Stage

_NONE = "some batches may give it none to learn from, and a sample's work there cannot be told"


@dataclass(frozen=True)
class Acm(Pass, Ignores):
    """Cut layers into learners of which each token takes as many as it needs (arXiv:2312.10193).

    A feed-forward block's hidden units are dealt to the learners by the power they give to its output on the
    calibration data, so that all learners together are the block. Gates know nothing of their tokens yet (``train-acm``
    teaches them): at budget b every token takes the first b N learners. The model gets an input ``budget`` with a
    default, by which one file serves every budget.

    Attributes:
        learners: N, learners of each layer.
        fraction: Work of all learners together over that of the layer; below 1 the least important units go.
        feedforward: Whether to cut feed-forward blocks.
        projections: Whether to cut lone projections (query, key, value, output) as well: into products of two thin
            matrices, of which every token takes one at least.
        select: Selectors of layers, a block by its last product; none: all.
        ignore: Selectors of layers to leave alone.
        budget: The default of the new input: the share of the learners that may run, above 0 and at most 1.
        samples: Calibration samples by which units are ordered.
    """

    name: ClassVar[str] = "acm"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    needs: ClassVar[tuple[Stage, ...]] = (Stage.FLOAT,)

    learners: int = 4
    fraction: float = 1.0
    feedforward: bool = True
    projections: bool = False
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    budget: float = 1.0
    samples: int = 32

    def __post_init__(self) -> None:
        site.check_budget(self.budget, "acm: option 'budget'")
        if self.learners < 1:
            raise BadRequest(f"at least one learner is needed, not {self.learners}", where="acm: option 'learners'")
        if not 0 < self.fraction <= 1:
            raise BadRequest(f"must lie in (0, 1], not {self.fraction}", where="acm: option 'fraction'")

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        anatomy = ffn.layer_blocks(model.graph)
        for where, why in anatomy.refused:
            report.skip(where, why)
        by_data = chosen_rows(model.graph)
        chosen = [f for f in self._chosen(model, anatomy) if self._fits(f, by_data, report)]
        if not chosen:
            if self.select:
                report.skip(", ".join(self.select), "no feed-forward block and no lone projection ends there")
            elif not anatomy.blocks:
                report.skip("model", "it has no feed-forward block")
            return
        opsets.require(model, OP.opset)
        moments = self._moments(model, chosen, ctx)
        knots, prices = untrained_table(self.learners)
        price = site.add_budget(model, self.budget, knots, prices)
        for found in ctx.progress(chosen, "learners", len(chosen)):
            self._substitute(found, price, moments)
            report.changed += 1
        attach(model, OP)
        report.metrics |= {"layers": len(chosen), "learners": self.learners, "multiply-adds at budget 1": _ratio(model)}

    def _chosen(self, model: ir.Model, anatomy: ffn.LayerBlocks) -> list[ffn.Found]:
        found: list[ffn.Found] = [*(anatomy.blocks if self.feedforward else ())]
        found += anatomy.projections if self.projections else ()
        nodes = list(model.graph)
        if self.select:
            named = _named(self.select, nodes, "acm: option 'select'")
            known: list[ffn.Found] = [*anatomy.blocks, *anatomy.projections]
            found = [f for f in known if f.name in named]
        ignored = _named(self.ignore, nodes, "acm: option 'ignore'")
        return [f for f in found if f.name not in ignored]

    def _fits(self, found: ffn.Found, by_data: Mapping[ir.Value, str], report: PassReport) -> bool:
        layer = found.down if isinstance(found, ffn.Block) else found.layer
        if (why := by_data.get(found.input)) is not None:
            report.skip(found.name, f"how many tokens it gets is decided by the data ({why}): {_NONE}")
        elif layer.weight_value.dtype != ir.DataType.FLOAT:
            report.skip(found.name, f"learners are float32, its weights are {layer.weight_value.dtype}")
        elif isinstance(found, ffn.Projection) and layer.weight_value is not layer.node.inputs[1]:
            report.skip(found.name, "its weights are quantized")
        elif isinstance(found, ffn.Block) and found.hidden < self.learners:
            report.skip(found.name, f"{found.hidden} hidden units are fewer than the learners")
        else:
            return True
        return False

    def _moments(self, model: ir.Model, chosen: Sequence[ffn.Found], ctx: Context) -> Mapping[str, Moments]:
        """Of the hidden values of blocks and the inputs of projections, by the last layer; none without data."""
        if ctx.data is None or ctx.run is None or self.samples < 1:
            return {}
        data = ctx.data.bind(model).take(self.samples, ctx.seed)
        return collect_moments(model, [f.name for f in chosen], data, ctx.run, progress=ctx.progress)

    def _substitute(self, found: ffn.Found, price: ir.Value, moments: Mapping[str, Moments]) -> None:
        seen = moments.get(found.name)
        moment = None if seen is None else seen.matrix[0]
        if isinstance(found, ffn.Block):
            power = None if moment is None else np.diag(moment)
            made = block_learners(found, self.learners, self.fraction, power)
            kind, gated, least = found.activation, found.gate is not None, 0 if found.residual else 1
        else:
            made = projection_learners(found.layer, self.learners, self.fraction, moment)
            kind, gated, least = "identity", False, 1
        replace(found, made, price, {"activation": kind, "gated": int(gated), "min_learners": least, "int8": 0})


def replace(found: ffn.Found, made: CutLearners, price: ir.Value, attributes: dict[str, str | int]) -> ir.Node:
    """Let an ACM compute what ``found`` computed; it takes over the name of its last product."""
    last = found.down if isinstance(found, ffn.Block) else found.layer
    node, old, x = last.node, found.output, found.input
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    least = int(attributes["min_learners"])
    choices = np.arange(least, len(made.w1) + 1)
    gate = np.zeros((made.w1.shape[1], len(choices)), np.float32)
    bias = (-(choices**2) / 2).astype(np.float32)
    arrays = {"gate": gate, "gate_bias": bias, "w1": made.w1, "b1": made.b1, "w2": made.w2, "b2": made.b2}
    held = {n: edit.add_const(graph, a, f"{node.name}.{n}") for n, a in arrays.items()}
    inputs = [x, held["gate"], held["gate_bias"], price, held["w1"], held["b1"], held["w2"], held["b2"]]
    acm = edit.new_node(OP.name, inputs, attributes, before=node, origin=node, outputs=2, domain=DOMAIN)
    edit.like(acm.outputs[0], old)
    acm.outputs[1].type = ir.TensorType(ir.DataType.INT64)
    acm.outputs[1].shape = None if old.shape is None else ir.Shape(list(old.shape)[:-1])
    if scope := node.metadata_props.get(SCOPE):
        acm.metadata_props[SCOPE] = scope
    name, maker = node.name, old.producer()
    assert maker is not None
    edit.remove_unused(edit.supersede(maker, [acm.outputs[0]], metadata=False))
    acm.name = name
    return acm


def untrained_table(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Prices at which gates of bias -k^2/2 take floor(b N) learners: k = round(-price)."""
    knots = np.array([0.0, 1.0])
    return knots, 0.5 - 1e-3 - count * knots


def _named(wanted: Sequence[str], nodes: list[ir.Node], where: str) -> set[str]:
    return {n.name or "" for s in wanted for n in selectors.match(s, nodes, where)}


def _ratio(model: ir.Model) -> str:
    found = site.sites(model)
    gates, all_learners = sum(s.gate_macs for s in found), sum(s.learner_macs * s.learners for s in found)
    return f"{all_learners:,} a token, and {gates:,} for the gates"
