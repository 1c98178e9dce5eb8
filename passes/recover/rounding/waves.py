"""The order in which layers are settled, each on what those before it give, and the values that are kept on the way."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.observe import npz
from graphpress.observe.inner import InnerValues, Stream
from graphpress.runner import Arrays, Executor

MEMORY = 1 << 30  # bytes of kept values; more lie in a temporary folder


@dataclass(frozen=True)
class Wave:
    """Layers that do not depend on one another.

    Attributes:
        nodes: The layers, as positions in the list that was given.
        live: Names of the values that the graph from the first of them on reads; all layers of earlier waves are
            before that. What follows from constants alone, as a weight behind Q -> DQ, is not kept: it may change.
    """

    nodes: tuple[int, ...]
    live: tuple[str, ...]


def waves(graph: ir.Graph, layers: Sequence[ir.Node]) -> list[Wave]:
    """Waves of layers of a graph, each as early as what it reads allows; of a body one at a time, in its order."""
    order = list(graph)
    place = {node: i for i, node in enumerate(order)}
    inside = {n: (node, i) for node in order for i, n in enumerate(_below(node))}
    around = [inside.get(layer, (layer, 0))[0] for layer in layers]
    depth = [inside.get(layer, (layer, 0))[1] for layer in layers]
    pending = sorted(range(len(layers)), key=lambda i: (place[around[i]], depth[i]))
    found, fixed = [], _fixed(order)
    while pending:
        start = place[around[pending[0]]]
        tainted: set[ir.Value] = set()
        waiting = {around[i] for i in pending}
        for node in order[start:]:
            if node in waiting or any(v in tainted for v in edit.reads(node)):
                tainted.update(node.outputs)
        free = {around[i]: i for i in reversed(pending)}.values()  # the first in each body; layers by themselves
        ready = tuple(i for i in pending if i in free and not any(v in tainted for v in edit.reads(around[i])))
        needed = _ancestors(order, [around[i] for i in pending])
        found.append(Wave(ready, tuple(v.name or "" for v in _live(order, start, needed) if v not in fixed)))
        pending = [i for i in pending if i not in ready]
    return found


def live(graph: ir.Graph, layers: Sequence[ir.Node]) -> tuple[str, ...]:
    """Names of the values from which the first of some layers of the graph and all that they need on are computed."""
    order = list(graph)
    places = [i for i, node in enumerate(order) if node in set(layers)]
    fixed = _fixed(order)
    return tuple(v.name or "" for v in _live(order, places[0], _ancestors(order, layers)) if v not in fixed)


def _below(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes of all bodies that a node holds."""
    for body in edit.subgraphs(node):
        for scope in edit.scopes(body):
            yield from scope


def _ancestors(order: Sequence[ir.Node], layers: Sequence[ir.Node]) -> set[ir.Node]:
    """The nodes that the layers' inputs are computed with, and the layers."""
    found, wanted = set(layers), {v for n in layers for v in edit.reads(n)}
    for node in reversed(order):
        if node in found or any(o in wanted for o in node.outputs):
            found.add(node)
            wanted.update(edit.reads(node))
    return found


def _live(order: Sequence[ir.Node], start: int, needed: set[ir.Node]) -> list[ir.Value]:
    made = {o for n in order[start:] for o in n.outputs}
    read = dict.fromkeys(v for n in order[start:] if n in needed for v in edit.reads(n))
    return [v for v in read if v not in made and not edit.is_constant(v)]


def _fixed(order: Sequence[ir.Node]) -> set[ir.Value]:
    """Values that are computed from constants alone."""
    found: set[ir.Value] = set()
    for node in order:
        if all(v in found or edit.is_constant(v) for v in edit.reads(node)):
            found.update(node.outputs)
    return found


@dataclass
class Prefix:
    """The values of a graph at one place of its order, batch by batch, on the graph as it stands.

    Attributes:
        model: Its nodes before that place do not change any more.
        execute: Builds runners of parts of the model.
        names: The values that are kept.
        store: The batches.
    """

    model: ir.Model
    execute: Executor
    names: tuple[str, ...]
    store: BatchStore

    @classmethod
    def of(cls, model: ir.Model, execute: Executor, batches: Iterable[Arrays]) -> Prefix:
        """At the very start; types that the graph does not know are inferred."""
        if any(o.type is None for n in model.graph for o in n.outputs):
            from onnx_ir.passes.common import ShapeInferencePass

            ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
        names = tuple(v.name or "" for v in model.graph.inputs if not edit.is_constant(v))
        return cls(model, execute, names, BatchStore.of(batches))

    def advance(self, names: Sequence[str]) -> None:
        """Go on to the place where ``names`` are live."""
        self.store = BatchStore.of(self.values(names).batches)
        self.names = tuple(names)

    def values(self, names: Sequence[str]) -> Stream:
        """These values of every batch, which the kept ones are enough to compute; of bodies, what can be seen."""
        inner = InnerValues.of(self.model, names, self.execute, given=self.names, floats=False, trial=self.store)
        return Stream(inner.batches(self.store), inner.unobserved)


@dataclass
class BatchStore:
    """Batches of arrays in memory, those beyond ``MEMORY`` in a folder that goes with the store."""

    batches: list[Arrays | Path] = field(default_factory=list)
    folder: Path | None = None

    @classmethod
    def of(cls, batches: Iterable[Arrays], memory: int = MEMORY) -> BatchStore:
        made, held = cls(), 0
        for batch in batches:
            held += sum(a.nbytes for a in batch.values())
            made.batches.append(dict(batch) if held <= memory else made._put(batch))
        return made

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Arrays]:
        for batch in self.batches:
            yield npz.read(batch) if isinstance(batch, Path) else batch

    def _put(self, batch: Arrays) -> Path:
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="graphpress-values-"))
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        path = self.folder / f"{len(self.batches):06}.npz"
        npz.save(path, {n: np.ascontiguousarray(a) for n, a in batch.items()})
        return path
