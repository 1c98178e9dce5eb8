"""``rotate``: residual streams, values, keys and MLP hidden values in a basis without outliers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.passes.rotate.at_ends import insert, take_out
from graphpress.passes.rotate.bases import BasisChoice, Kind
from graphpress.passes.rotate.online import Online, merged
from graphpress.passes.rotate.salience import Salience, Threshold, listen
from graphpress.passes.rotate.witness import witness
from graphpress.passes.structure.channels.commuting import survey
from graphpress.passes.structure.channels.ends import ends
from graphpress.passes.structure.channels.follow import Carried, by_node
from graphpress.passes.structure.channels.lanes import along
from graphpress.passes.structure.channels.ledger import Ledger, on_runs, turn
from graphpress.passes.structure.channels.moves import READER, Holder, Move
from graphpress.passes.structure.layers.heads import before_copies, find_heads
from graphpress.passes.structure.layers.linear import Linear, layers
from graphpress.passes.structure.layers.norms import Norm, find_norms
from graphpress.passes.structure.layers.outermost import first_layers
from graphpress.passes.structure.layers.pairs import find_pairs
from graphpress.passes.structure.layers.streams import ResidualStream, find_streams
from graphpress.types import Numerics, Stage

_SHOWN = 3  # reasons a stream is not rotated, at most


@dataclass(frozen=True)
class Rotate(Pass):
    """Change the basis of what is quantized so that no channel stands out; the function stays the same (QuaRot,
    arXiv:2404.00456; SpinQuant, arXiv:2405.16406).

    Run ``fold-norms`` before it. Residual streams and values are turned by their weights alone; keys and MLP hidden
    values cost a ``graphpress::Hadamard`` node each. Everything is merged in float64 and rounded once.

    Attributes:
        residual: R1: turn each residual stream; where it is an output, or something reads it that wants it as it was,
            it is turned back by one product (at up to three places).
        values: R2: turn the values of each attention head, and back in the output projection.
        keys: R3: turn queries and keys at run time, after their rotary embedding.
        down: R4: turn what an MLP's last layer reads at run time, and back in its weight.
        inputs: Turn whatever else layers read at run time, and back in their weights: what stands behind a modulation
            (AdaLN) or a LayerNormalization cannot be turned by weights alone. Not what the first layers read.
        salient: The root mean square of what a layer reads, on calibration data, from which on ``down`` and ``inputs``
            turn it by the dual transform of its loud channels: two block rotations and an order between them, at run
            time. Below it, and without it, by a Hadamard matrix. 1 in LRQ-DiT, whose adaptive rotation scheme this is;
            where ``smooth`` went before, what counts is what it found. ``auto``: whichever leaves less of an error in
            rows of 4 bits that it was not made for: a Hadamard matrix without signs gathers what channels have in
            common, such as the mean behind an activation function, in one of them.
        samples: Of the calibration data, for ``salient``.
        kind: ``hadamard`` (with random signs where it is merged), ``orthogonal`` (random; merged only), ``block``
            (Hadamard blocks down the diagonal), or ``auto``: a Hadamard matrix where one of the order is known, else
            the largest blocks.
        block_size: Of kind block: the order of the blocks; None: the largest power of two that divides the channels.
        seed: Of the random signs and matrices; None: the seed of the run.
    """

    name: ClassVar[str] = "rotate"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    needs: ClassVar[tuple[Stage, ...]] = (Stage.FLOAT,)

    residual: bool = True
    values: bool = True
    keys: bool = False
    down: bool = False
    inputs: bool = False
    salient: Threshold | None = None
    samples: int = 128
    kind: Kind = "auto"
    block_size: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        BasisChoice(self.kind, self.block_size)
        if self.salient is not None and not (self.down or self.inputs):
            what = "is of what is turned at run time, and nothing is"
            raise BadRequest(what, where="rotate: option 'salient'", fix="Set inputs or down.")
        if isinstance(self.salient, float | int) and not self.salient >= 0:
            raise BadRequest(f"{self.salient} is no root mean square", where="rotate: option 'salient'")
        if self.samples < 1:
            raise BadRequest(f"{self.samples} is not positive", where="rotate: option 'samples'")

    def check(self, ctx: Context) -> None:
        if self.salient is not None:
            ctx.need("data", "rotate: option 'salient'", "needs to hear what layers read", "leave it out")
            ctx.need("run", "rotate: option 'salient'")

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        before = model.clone() if ctx.oracle is not None and ctx.data is not None else model
        rng = np.random.default_rng(ctx.seed if self.seed is None else self.seed)
        salience = None if self.salient is None else listen(model, ctx, self.salient, self.samples, report)
        job = _Rotation(BasisChoice(self.kind, self.block_size), rng, Online(model), report, salience)
        for graph in [g for g in edit.graphs(model) if isinstance(g, ir.Graph)]:
            self._of(graph, job)
        report.changed += job.ledger.write() + job.online.made
        report.metrics |= job.counts | ({"untied weights": job.ledger.untied} if job.ledger.untied else {})
        if report.changed:
            _prove(before, model, job, ctx)
        elif not report.skips:
            report.skip(model.graph.name or "graph", "no residual stream, attention or MLP pair was found")

    def _of(self, graph: ir.Graph, job: _Rotation) -> None:
        norms = by_node(find_norms(graph))
        for stream in find_streams(graph, norms) if self.residual else []:
            job.stream(stream)
        if self.values:
            job.values(graph, norms)
        if self.keys:
            job.keys(graph)
        if self.down:
            job.down(graph)
        if self.inputs:
            job.inputs(graph)


@dataclass(eq=False)
class _Rotation:
    choice: BasisChoice
    rng: np.random.Generator
    online: Online
    report: PassReport
    salience: Salience | None = None
    ledger: Ledger = field(default_factory=Ledger)
    turned: set[ir.Value] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)
    witnesses: dict[str, None] = field(default_factory=dict)

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def stream(self, stream: ResidualStream) -> None:
        stream = self.turned_back(stream)
        if obstacles := stream.obstacles():
            more = f", and {len(obstacles) - _SHOWN} more" if len(obstacles) > _SHOWN else ""
            self.report.skip(stream.seed, f"residual stream: {'; '.join(obstacles[:_SHOWN])}{more}")
            return
        basis = self.choice.basis(stream.width, self.rng)
        if isinstance(basis, str):
            self.report.skip(stream.seed, f"residual stream: {basis}")
            return
        self.turn(stream.carried, basis)
        self.count("residual streams turned")

    def turned_back(self, stream: ResidualStream) -> ResidualStream:
        """The stream with a product at each place where it leaves, if nothing else is in the way; else as it is."""
        graph, found = stream.seed.graph, ends(stream.carried)
        if not found or any(n.fixed() for n in stream.norms) or self.unknown(stream.width):
            return stream
        made = [insert(e, "MatMul", np.eye(stream.width), "turned_back") for e in found]
        again = next(s for s in find_streams(graph) if s.seed is stream.seed) if isinstance(graph, ir.Graph) else stream
        if again.carried.blocks or not again.writers:
            for node in made:
                take_out(node)
            return stream
        self.counts["places turned back"] = self.counts.get("places turned back", 0) + len(made)
        return again

    def unknown(self, width: int) -> bool:
        """Whether there is no basis of that width."""
        return isinstance(self.choice.basis(width, np.random.default_rng(0)), str)

    def turn(self, carried: Carried, basis: np.ndarray) -> None:
        change = turn(basis)
        for holder in carried.holders:
            self.ledger.add(holder, change, mixes=True)
        self.turned |= carried.members.keys()
        for holder in carried.readers:
            self.witnesses[holder.node.outputs[0].name or ""] = None

    def values(self, graph: ir.Graph, norms: Mapping[ir.Node, Norm]) -> None:
        found = survey(graph, Move.ROTATE, norms)
        for heads in find_heads(graph):
            carried = heads.values(found)
            if carried.members.keys() <= self.turned:
                continue  # of another attention that shares its values
            why = heads.fixed(carried, self.turned)
            basis = why or self.choice.basis(heads.value_size, self.rng)
            if isinstance(basis, str):
                self.report.skip(heads.node, f"values: {basis}")
                continue
            self.turn(carried, basis)
            self.count("value heads turned")

    def keys(self, graph: ir.Graph) -> None:
        for heads in find_heads(graph):
            edges = [before_copies(*edge, heads.size) for edge in (heads.query, heads.key)]
            factors = self.choice.factors(heads.size)
            why = next((e for e in (*edges, factors) if isinstance(e, str)), "")
            if why or isinstance(factors, str):
                self.report.skip(heads.node, f"keys: {why}")
                continue
            for edge in edges:
                assert not isinstance(edge, str)
                self.online.insert([edge], factors, heads.node)
            self.count("key heads turned")

    def down(self, graph: ir.Graph) -> None:
        for pair in find_pairs(graph):
            if why := self.before(pair.down):
                self.report.skip(pair.down[0].node, f"down projection: {why}")
            else:
                self.count("down projections turned")

    def inputs(self, graph: ir.Graph) -> None:
        readers: dict[ir.Value, list[Linear]] = {}
        first = first_layers(graph)
        for view in (v for v in layers(list(graph)) if v.node.op_type != "Conv" and v.node not in first):
            if view.input not in self.turned and not self.online.gives(view.input):
                readers.setdefault(view.input, []).append(view)
        for value, views in readers.items():
            why = f"the type of {value.name!r} is not known" if value.dtype is None else self.before(views)
            if why:
                self.report.skip(views[0].node, f"inputs: {why}")
            else:
                self.count("inputs turned")

    def before(self, views: Sequence[Linear]) -> str:
        """Turn what some layers read at run time, and back in their weights; or say why not."""
        edges, origin = [(view.node, 0) for view in views], views[0].node
        factors = self.choice.factors(views[0].shape[1])
        plain = None if isinstance(factors, str) else merged(factors)
        loud = self.salience.transform(views, plain, self.rng) if self.salience is not None else None
        if loud is not None:
            change = on_runs(loud, views[0].shape[1])
            self.online.insert_dual(edges, loud, origin)
            self.count("of them by the dual transform")
        elif plain is None or isinstance(factors, str):
            return str(factors)
        else:
            change = turn(plain)
            self.online.insert(edges, factors, origin)
        for view in views:
            lanes = along(np.arange(view.shape[1]), 0 if view.transposed else 1, 2)
            self.ledger.add(Holder(view.node, 1, lanes, READER), change, mixes=True)
        return ""


def _prove(before: ir.Model, model: ir.Model, job: _Rotation, ctx: Context) -> None:
    turned, known = {v.name for v in job.turned}, {o.name for n in before.graph for o in n.outputs}
    inner = {o.name for n in model.graph for o in n.outputs if o.name in job.witnesses} & known - turned
    outputs = [o.name or "" for o in model.graph.outputs]
    names = list(dict.fromkeys([*(n for n in job.witnesses if n in inner), *outputs]))
    found = witness(before, model, names, ctx)
    job.report.metrics["witness"] = found if isinstance(found, str) else f"{found[0]:.1e} of RMS at {found[1]}"
    if not isinstance(found, str):
        job.report.metrics["largest deviation"] = found[0]
