"""``fold-norms``: norms without gain and bias of their own, LayerNormalization as RMSNormalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import edit
from graphpress.passes.rotate.at_ends import insert
from graphpress.passes.rotate.at_starts import begin, beside_layers, turnable
from graphpress.passes.rotate.centre import centre
from graphpress.passes.structure.channels.commuting import survey
from graphpress.passes.structure.channels.ends import End, ends
from graphpress.passes.structure.channels.follow import Carried, by_node, follow
from graphpress.passes.structure.channels.lanes import along
from graphpress.passes.structure.channels.ledger import Ledger, factor
from graphpress.passes.structure.channels.moves import Holder, Move
from graphpress.passes.structure.channels.survey import Survey
from graphpress.passes.structure.layers.linear import Linear, layers, linear
from graphpress.passes.structure.layers.norms import Norm, find_norms
from graphpress.passes.structure.layers.streams import find_streams
from graphpress.types import Numerics, Stage


@dataclass(frozen=True)
class FoldNorms(Pass):
    """Move gains and biases of norms into the linear layers that read them, and make RMSNormalization of
    LayerNormalization by centring what writes the stream (SliceGPT, arXiv:2401.15024, section 3.2).

    After it a residual stream can change basis: ``rotate``. A constant scale behind a layer (LayerScale) goes into that
    layer. Weights that others read as well are copied. A norm whose output is read by anything else than linear layers,
    such as the sum of a post-norm encoder, is left as it is.

    Attributes:
        centre: Make RMSNormalization of LayerNormalization; may raise the opset to 23.
        starts: Where a stream begins behind a norm (of the embedding), put a product there that takes up the gain, if
            that is cheap and the stream can change basis then.
    """

    name: ClassVar[str] = "fold-norms"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    needs: ClassVar[tuple[Stage, ...]] = (Stage.FLOAT,)

    centre: bool = True
    starts: bool = True

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        untied = 0
        for graph in [g for g in edit.graphs(model) if isinstance(g, ir.Graph)]:
            scales, ledger = Ledger(), Ledger()
            report.changed += _fold_scales(graph, scales)
            scales.write()
            if self.starts:
                begin(graph, _gain_kept, report)
            norms = find_norms(graph)
            found = survey(graph, Move.ROTATE, by_node(norms))
            last = _last(graph, norms, found)
            for norm in norms:
                _fold(norm, found, ledger, report, norm in last)
            if self.centre:
                centre(model, graph, ledger, report)
            ledger.write()
            untied += scales.untied + ledger.untied
        if untied:
            report.metrics["untied weights"] = untied


def _fold(norm: Norm, found: Survey, ledger: Ledger, report: PassReport, last: bool) -> None:
    gain, bias = norm.gain_array(), norm.bias_array()
    plain = gain is None or bool((gain == 1).all())
    if plain and (bias is None or not bias.any()):
        return
    carried = follow(found, norm.output)
    leaves = ends(carried)
    if why := _obstacle(norm, carried, bias, bool(leaves) and (last or bool(carried.readers))):
        if not norm.uniform():
            report.skip(norm.node, f"keeps its gain: {why}")
        return
    change = factor(gain) if gain is not None else None
    for reader in carried.readers:
        if bias is not None and bias.any():
            _shift(reader, bias)
        if change is not None:
            ledger.add(reader, change)
    for end in leaves:
        _apply(end, gain, bias)
    _strip(norm)
    report.changed += 1
    report.metrics["norms folded"] = float(report.metrics.get("norms folded", 0)) + 1


def _last(graph: ir.Graph, norms: list[Norm], found: Survey) -> set[Norm]:
    """Norms that no layer reads, of streams that can change basis once the gain is put where they leave."""
    leaving = [n for n in norms if beside_layers(n) or (n.output.is_graph_output() and not n.uniform())]
    ones = {n for n in leaving if not follow(found, n.output).readers}
    streams = find_streams(graph, by_node(norms)) if ones else []
    return {n for s in streams if ones & set(s.norms) and turnable(s, found, _gain_kept) for n in s.norms} & ones


def _gain_kept(norm: Norm, found: Survey) -> str:
    """Why a norm of a stream keeps its gain, or ""."""
    carried = follow(found, norm.output)
    return _obstacle(norm, carried, norm.bias_array(), bool(ends(carried)))


def _apply(end: End, gain: np.ndarray | None, bias: np.ndarray | None) -> None:
    """Give gain and bias to one reader of what the norm gives."""
    for op, array, name in (("Mul", gain, "gain"), ("Add", bias, "bias")):
        if array is not None and (op == "Mul" or array.any()):
            made = insert(end, op, array, name)
            end = End(made.outputs[0], end.node, end.slot)


def _obstacle(norm: Norm, carried: Carried, bias: np.ndarray | None, leaves: bool) -> str:
    if carried.blocks and not leaves:
        block = carried.blocks[0]
        return f"{block.where}: {block.why}"
    if set(carried.norms) != {norm} or carried.norms[norm] != {"output"}:
        return "another norm reads it without a layer between"
    if carried.writers:
        return f"{carried.writers[0].name} is added to it, so the sum would have to be scaled as a whole"
    if bias is None or not bias.any():
        return ""
    if moved := [n for n in carried.passed if n.op_type in _NOT_SHIFTED]:
        return f"its bias does not pass {moved[0].name}"
    return next((f"its bias does not pass {r.name}: {why}" for r in carried.readers if (why := _edge(r))), "")


_NOT_SHIFTED = ("Mul", "Div", "Neg", "ReduceSum", "Sub", "Sum", "Add", "Where", "Concat", "Pad")


def _edge(reader: Holder) -> str:
    view = linear(reader.node)
    if isinstance(view, str):
        return view
    padded = any(edit.attribute(reader.node, "pads") or ())
    same = edit.attribute(reader.node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return "its border is padded with zeros" if padded or same else ""


def _shift(reader: Holder, bias: np.ndarray) -> None:
    """Add what the norm's bias makes of it to the bias of a layer."""
    view = linear(reader.node)
    assert isinstance(view, Linear)
    weight = view.weight().astype(np.float64)
    shift = weight.reshape(len(weight), weight.shape[1] // len(bias), len(bias), -1).sum((1, 3)) @ bias
    old = view.bias()
    view.set_bias(shift if old is None else old + shift)


def _strip(norm: Norm) -> None:
    """Leave a gain of ones and no bias."""
    if norm.fused:
        scale = edit.constant(norm.node.inputs[1])
        assert scale is not None
        edit.set_constant(norm.node, 1, np.ones_like(scale), "scale")
        if norm.bias is not None:
            old = norm.node.inputs[2]
            norm.node.resize_inputs(2)
            edit.remove_unused([old])
        return
    for step in (norm.bias, norm.gain):  # the last one first
        if step is not None:
            node, slot = step
            source = node.inputs[1 - slot]
            assert source is not None
            inputs = list(node.inputs)
            edit.replace(node.outputs[0], source)
            edit.remove([node])
            edit.remove_unused(inputs)


def _fold_scales(graph: ir.Graph, ledger: Ledger) -> int:
    """Products of a layer's output with a constant vector of its channels, folded into the layer."""
    by_output = {view.output: view for view in layers(list(graph)) if view.node.op_type != "Conv"}
    count = 0
    for node in list(graph):
        found = _layer_scale(node, by_output)
        if found is None:
            continue
        view, scale = found
        change, lanes = factor(scale), np.arange(len(scale))
        ledger.add(Holder(view.node, 1, along(lanes, 1 if view.transposed else 0, len(view.shape))), change)
        if view.bias() is not None:
            holder = view.add or view.node
            slot = 2 if view.add is None else next(i for i, v in enumerate(holder.inputs) if edit.is_constant(v))
            ledger.add(Holder(holder, slot, lanes), change)
        inputs = list(node.inputs)
        edit.replace(node.outputs[0], view.output)
        edit.remove([node])
        edit.remove_unused(inputs)
        count += 1
    return count


def _layer_scale(node: ir.Node, by_output: dict[ir.Value, Linear]) -> tuple[Linear, np.ndarray] | None:
    if node.op_type != "Mul" or node.domain != "":
        return None
    for slot in (0, 1):
        value, scale = node.inputs[slot], edit.constant(node.inputs[1 - slot])
        view = by_output.get(value) if value is not None else None
        if view is None or value is None or scale is None or len(value.uses()) != 1 or value.is_graph_output():
            continue
        if scale.size == view.shape[0] and scale.shape[-1:] == (scale.size,) and scale.size > 1:
            return view, scale.astype(np.float64).reshape(-1)
    return None
