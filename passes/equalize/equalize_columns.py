"""Columns of a weight that differ by decades are brought to one size, and what they are multiplied with follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import edit
from graphpress.graph.quantized import decodes
from graphpress.passes.structure.channels.commuting import survey
from graphpress.passes.structure.channels.follow import Carried, follow
from graphpress.passes.structure.channels.ledger import Ledger, factor
from graphpress.passes.structure.channels.moves import WRITER, Move
from graphpress.passes.structure.channels.survey import Survey
from graphpress.passes.structure.layers.linear import Linear, linear
from graphpress.types import Numerics

LOST = 0.5  # decades that a weight lies below half a step of 8 bits over its row, in the mean
_FURTHEST = 60  # exponent of a factor
_RECURRENT = ("LSTM", "GRU", "RNN")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class EqualizeColumns(Pass):
    """Divide channels by powers of two, and multiply the columns of the weights that read them, where those are lost.

    A layer that was trained on raw power spectra has weights of 1e-4 for loud bins beside weights of 1e4 for quiet
    ones: one step for a row of them holds the quiet bins alone. This is SmoothQuant with an alpha of 0 (Xiao et al.,
    2022, eq. 4), which needs no data, on MatMul, Gemm and the input weights of LSTM, GRU and RNN. The division goes
    into what makes the channels, or into a Mul before the layer. Powers of two change no bit of the result. Layers
    whose weights lose less than half a decade in the mean are left as they are, which is nearly all.
    """

    name = "equalize-columns"
    numerics = Numerics.EXACT

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        """Rewrite weights of ``model``, and add a Mul where nothing takes up the factors."""
        readers: dict[ir.Value, list[ir.Node]] = {}
        for node in edit.nodes(model):
            if (value := _reads(node)) is not None:
                readers.setdefault(value, []).append(node)
        lost = {v: max(decades_lost(_weight(n)) for n in nodes) for v, nodes in readers.items()}
        surveys: dict[ir.Graph | None, Survey] = {}
        for value, nodes in readers.items():
            if lost[value] < LOST:
                continue
            if value.graph not in surveys:
                surveys[value.graph] = survey(value.graph or (), Move.SCALE)
            by_channel = _factors(np.concatenate([_weight(n) for n in nodes]))
            carried = follow(surveys[value.graph], value)
            into = _move(carried, nodes, by_channel) or _insert(value, nodes, by_channel)
            report.changed += len(nodes)
            names = ", ".join(n.name or "?" for n in nodes)
            report.metrics[f"columns of {names}"] = f"{lost[value]:.1f} decades lost to 8 bits, scaled by {into}"


def decades_lost(weight: np.ndarray) -> float:
    """How far weights [rows, columns] that are not 0 lie below half a step of their row, in decades, in the mean.

    A step is 1/127 of the largest of a row. Weights above half of one lose nothing.
    """
    sizes = np.abs(weight.astype(np.float64))
    half = sizes.max(1, keepdims=True, initial=0.0) / 127 / 2
    lost = np.log10(np.maximum(np.divide(half, sizes, out=np.ones_like(sizes), where=sizes > 0), 1))
    return float(lost[sizes > 0].mean()) if (sizes > 0).any() and np.isfinite(sizes).all() else 0.0


def _factors(weight: np.ndarray) -> np.ndarray:
    """By what each channel is divided and its column multiplied, [columns]: the median column keeps its size."""
    largest = np.abs(weight.astype(np.float64)).max(0)
    alive = largest > 0
    exponents = np.rint(np.log2(np.median(largest[alive]) / np.where(alive, largest, 1.0)))
    return np.asarray(np.exp2(np.where(alive, np.clip(exponents, -_FURTHEST, _FURTHEST), 0.0)))


def _reads(node: ir.Node) -> ir.Value | None:
    """The value whose channels stand on the last axis and meet the columns of a float weight."""
    value = node.inputs[0] if node.inputs else None
    if node.domain or value is None or edit.is_constant(value) or value.graph is None:
        return None
    if (maker := value.producer()) is not None and decodes(maker):
        return None  # it is quantized already: a Mul would come between codes and their kernel
    if node.op_type in _RECURRENT:
        known = edit.constant_tensor(node.inputs[1])
        return value if known is not None and known.dtype in _FLOATS else None
    view = linear(node) if node.op_type in ("MatMul", "Gemm") else None
    return value if isinstance(view, Linear) and view.weight_value.dtype in _FLOATS else None


def _weight(node: ir.Node) -> np.ndarray:
    """[rows, columns]."""
    if isinstance(view := linear(node), Linear):
        return view.weight()
    array = edit.constant(node.inputs[1])
    assert array is not None
    return array.reshape(-1, array.shape[-1])


def _move(carried: Carried, nodes: Sequence[ir.Node], by_channel: np.ndarray) -> str:
    """Let what makes the channels take the factors up; "" where it cannot, or others read them too."""
    single = len(np.unique(carried.alike)) == len(carried.alike) == len(by_channel)
    if carried.blocks or not carried.writers or not single or {h.node for h in carried.readers} != set(nodes):
        return ""
    ledger, divided, multiplied = Ledger(), factor(by_channel, np.divide), factor(by_channel)
    for holder in [h for h in carried.holders if h.side == WRITER]:
        ledger.add(holder, divided)
    for holder in carried.readers:
        ledger.add(holder, multiplied)
    ledger.write()
    return ", ".join(dict.fromkeys(h.name for h in carried.writers))


def _insert(value: ir.Value, nodes: Sequence[ir.Node], by_channel: np.ndarray) -> str:
    """A Mul by the factors' reciprocals before the layers."""
    first = nodes[0]
    assert isinstance(first.graph, ir.Graph)
    inverse = (1 / by_channel).astype(_weight(first).dtype)
    constant = edit.add_const(first.graph, inverse, f"{first.name}.by_channel")
    mul = edit.new_node("Mul", [value, constant], before=first, origin=first)
    edit.like(mul.outputs[0], value)
    for node in nodes:
        if isinstance(view := linear(node), Linear):
            view.set_weight(view.weight() * by_channel)
        else:
            stored = edit.constant(node.inputs[1])
            assert stored is not None
            edit.set_constant(node, 1, (stored * by_channel).astype(stored.dtype), "weight")
        edit.set_input(node, 0, mul.outputs[0])
    return mul.name or "Mul"
