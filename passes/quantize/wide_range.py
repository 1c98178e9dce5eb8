"""Inputs over so many decades that one 8-bit step swallows most of them, where what is small matters: power spectra.

8 bits over a range hold a value to half a step, which is nothing where a sample of speech is 10 and a pause 1e-8. A
Log, a root or a norm behind it brings what was lost back to full size. What reads such a value stays float, up to what
compresses it; without that, its first readers keep float activations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Skip
from graphpress.graph import edit
from graphpress.graph.movement import TABLE, Way, moves
from graphpress.observe.data import CalibrationData
from graphpress.observe.inner import stream
from graphpress.passes.quantize import operators

LOST = 0.5  # decades that a number which is not 0 lies below half a step of 8 bits, in the mean
_SAMPLES = 64
_KEPT = 1 << 14  # numbers that are looked at of each sample
_FEW = 64  # numbers from which it can be told
_MOVES = frozenset(TABLE) | {"Cast", "Dropout"}
_LINEAR = _MOVES | {
    "MatMul", "Gemm", "Conv", "Add", "Sub", "Sum", "Mul", "Neg", "Abs", "ReduceSum", "ReduceMean", "ReduceL1",
    "ReduceL2", "ReduceSumSquare", "AveragePool", "GlobalAveragePool", "BatchNormalization", "Max", "Min",
}  # fmt: skip
_COMPRESSES = frozenset({
    "Log", "Sqrt", "Reciprocal", "LayerNormalization", "InstanceNormalization", "GroupNormalization",
    "RMSNormalization", "SimplifiedLayerNormalization", "LpNormalization", "MeanVarianceNormalization",
})  # fmt: skip


@dataclass(frozen=True)
class Wide:
    """Why a node does not read its input in 8 bits.

    Attributes:
        why: In words.
        whole: Whether its weights stay float too, as what is small goes on through it to what compresses.
    """

    why: str
    whole: bool


def find(model: ir.Model, ctx: Context) -> tuple[dict[str, Wide], list[Skip]]:
    """The nodes that must not read 8 bits, by name, and a line for each wide value.

    Nothing without data. Inputs are judged by the data alone; what squares make of inputs, by runs of the model.
    """
    if ctx.data is None:
        return {}, []
    inputs = [v for v in model.graph.inputs if v.dtype in operators.FLOATS and not v.is_initializer() and v.uses()]
    ways, seen = _Ways(operators.body(model)), _given(ctx.data.bind(model), inputs, ctx.seed)
    wide = [v for v in inputs if v.name in seen and seen[v.name].lost() >= LOST]
    parts = [out for v in wide for out in ways.parts(v)]
    squares = [
        v for v in ways.squares(inputs) if any(n.op_type in operators.WEIGHTS for n in ways.region(v, near=False))
    ]
    if ctx.run is not None and (parts or squares):
        names = [v.name or "" for v in (*parts, *squares)]
        for values in stream(model, names, ctx.data.take(_SAMPLES, ctx.seed), ctx.run).batches:
            for name, array in values.items():
                seen.setdefault(name, _Seen()).add(array)
    found: dict[str, Wide] = {}
    said: list[Skip] = []
    for value in (*wide, *parts, *squares):
        lost = seen[value.name].lost() if value.name in seen else 0.0
        region = ways.region(value, near=value not in squares) if lost >= LOST else {}
        nodes = {n.name or "": whole for n, whole in region.items() if n.op_type in operators.WEIGHTS or whole}
        if nodes:
            what = f"in 8 bits the numbers of {value.name!r} would lose {lost:.1f} decades in the mean"
            found |= {name: Wide(what, whole) for name, whole in nodes.items()}
            said.append(Skip(value.name or "", f"{what}: what reads it stays float ({', '.join(nodes)})"))
    return found, said


def decades_lost(numbers: np.ndarray, low: float, high: float) -> float:
    """How far numbers that are not 0 lie below half a step of 256 from ``low`` to ``high``, in decades, in the mean.

    0 for those that are larger, so a normal distribution loses 0.01, an even one less, nine decades lose 2.9.
    """
    sizes = np.abs(numbers[(numbers != 0) & np.isfinite(numbers)]).astype(np.float64)
    half = (max(high, 0.0) - min(low, 0.0)) / 255 / 2
    return float(np.log10(np.maximum(half / sizes, 1)).mean()) if sizes.size >= _FEW and half > 0 else 0.0


@dataclass
class _Seen:
    """Some numbers of a value, and its ends."""

    low: float = 0.0
    high: float = 0.0
    kept: list[np.ndarray] = field(default_factory=list)

    def add(self, array: np.ndarray) -> None:
        flat = array.astype(np.float32).ravel()
        flat = flat[np.isfinite(flat)]
        if flat.size:
            self.low, self.high = min(self.low, float(flat.min())), max(self.high, float(flat.max()))
            self.kept.append(flat[:: -(-flat.size // _KEPT)])

    def lost(self) -> float:
        return decades_lost(np.concatenate(self.kept), self.low, self.high) if self.kept else 0.0


def _given(data: CalibrationData, inputs: Sequence[ir.Value], seed: int) -> dict[str | None, _Seen]:
    """What the data holds for each input."""
    some, seen = data.take(_SAMPLES, seed), dict[str | None, _Seen]()
    for feeds in some.batches((some.binding.exact if some.binding else None) or 1):
        for name in [v.name for v in inputs if v.name in feeds]:
            seen.setdefault(name, _Seen()).add(feeds[name])
    return seen


class _Ways:
    """Where values go on without losing what is small in them.

    Attributes:
        leading: Operators by whose outputs, over linear operators and squares, one comes to what compresses them.
    """

    def __init__(self, nodes: Iterable[ir.Node]) -> None:
        waiting = [v for n in nodes for slot, v in enumerate(n.inputs) if v is not None and _compresses(n, slot)]
        self.leading: set[ir.Node] = set()
        while waiting:
            node = waiting.pop().producer()
            if node is not None and node not in self.leading and _passes(node):
                self.leading.add(node)
                waiting += [v for slot, v in enumerate(node.inputs) if v is not None and _data(node, slot)]

    def region(self, source: ir.Value, *, near: bool) -> dict[ir.Node, bool]:
        """Operators that read a value on a way to what compresses it (True), or just read it (False; ``near``)."""
        found: dict[ir.Node, bool] = {}
        waiting = [(source, near)]
        while waiting:
            value, near = waiting.pop()
            for node, slot in value.uses():
                leads = node in self.leading
                if node in found or not _data(node, slot) or not (leads or near) or _compresses(node, slot):
                    continue
                found[node] = leads
                onward = near and _whole(node)
                waiting += [(out, onward) for out in node.outputs if leads or onward]
        return found

    def parts(self, source: ir.Value) -> Iterator[ir.Value]:
        """What is selected of a value, or scaled, and leads nowhere: whether that is as wide must be seen."""
        waiting = [source]
        while waiting:
            for node, slot in waiting.pop().uses():
                if node in self.leading or not _data(node, slot):
                    continue
                if _whole(node):
                    waiting += node.outputs
                elif node.op_type in _MOVES or (
                    node.op_type in ("Mul", "Div") and any(map(edit.is_constant, node.inputs))
                ):
                    yield from node.outputs

    def squares(self, inputs: Iterable[ir.Value]) -> list[ir.Value]:
        """What squares make of inputs that came to them through linear operators."""
        found: dict[ir.Value, None] = {}
        known, waiting = set(inputs), list(inputs)
        while waiting:
            for node, slot in waiting.pop().uses():
                if _squares(node):
                    found[node.outputs[0]] = None
                elif _data(node, slot) and _passes(node):
                    waiting += [out for out in node.outputs if out not in known]
                    known |= set(node.outputs)
        return list(found)


def _whole(node: ir.Node) -> bool:
    """Whether all that goes in comes out."""
    return moves(node, Way.VIEW, Way.REORDER, Way.REPEAT, Way.JOIN) or (node.op_type == "Cast" and not node.domain)


def _data(node: ir.Node, slot: int) -> bool:
    """Whether an operand is what the operator computes with: states of recurrent layers, shapes, indices are not."""
    return node.domain == "" and (slot == 0 or node.op_type in _LINEAR - _MOVES or node.op_type == "Concat")


def _compresses(node: ir.Node, slot: int) -> bool:
    """Whether small numbers come out as large, next to others, as they never were."""
    if node.domain != "":
        return False
    if node.op_type == "Pow":
        power = edit.constant(node.inputs[1])
        return slot == 0 and power is not None and bool((power < 1).all())
    return node.op_type in _COMPRESSES or (node.op_type == "Div" and not edit.is_constant(node.inputs[1]))


def _passes(node: ir.Node) -> bool:
    return node.domain == "" and (node.op_type in _LINEAR or _divides(node) or _squares(node))


def _divides(node: ir.Node) -> bool:
    return node.op_type == "Div" and edit.is_constant(node.inputs[1])


def _squares(node: ir.Node) -> bool:
    if node.op_type == "Pow":
        power = edit.constant(node.inputs[1])
        return power is not None and bool((power > 1).all())
    return node.op_type == "Mul" and node.inputs[0] is node.inputs[1]
