"""LayerNormalization as RMSNormalization: what writes the stream is centred, so that its mean is zero already."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphpress.contracts import PassReport
from graphpress.errors import Unsupported
from graphpress.graph import edit, opsets
from graphpress.passes.structure.channels.commuting import survey
from graphpress.passes.structure.channels.follow import Carried, by_node, follow
from graphpress.passes.structure.channels.ledger import Ledger, on_runs
from graphpress.passes.structure.channels.moves import Move
from graphpress.passes.structure.layers.norms import Norm, find_norms

_RMS_OPSET = 23


def centre(model: ir.Model, graph: ir.Graph, ledger: Ledger, report: PassReport) -> None:
    """Centre the writers of each class of values that only LayerNormalizations read, and take their means away."""
    norms = by_node(find_norms(graph))
    found = survey(graph, Move.ROTATE, norms)
    done: set[Norm] = set()
    for norm in dict.fromkeys(norms.values()):
        if norm in done or not norm.centred:
            continue
        carried = follow(found, norm.input)
        class_ = [n for n, ports in carried.norms.items() if "input" in ports]
        done.update(class_)
        if why := kept(carried) or _raise_opset(model, class_):
            report.skip(norm.node, f"stays LayerNormalization: {why}")
            continue
        change = on_runs(_centred, carried.extent)
        for holder in carried.holders:
            ledger.add(holder, change, mixes=True)
        for one in class_:
            _take_mean_away(one)
        report.changed += len(class_)
        made = float(report.metrics.get("norms made RMSNormalization", 0))
        report.metrics["norms made RMSNormalization"] = made + len(class_)


def _centred(array: np.ndarray) -> np.ndarray:
    return np.asarray(array - array.mean(-1, keepdims=True))


def kept(carried: Carried, *, folded: bool = False) -> str:
    """Why the LayerNormalizations of a class stay what they are, or "".

    Args:
        carried: What moves with the input of one of them.
        folded: Whether to take it that the norms have neither gain nor bias.
    """
    if carried.blocks:
        block = carried.blocks[0]
        return f"{block.where}: {block.why}"
    if carried.readers:
        return f"{carried.readers[0].name} reads the stream with its mean"
    for norm, ports in carried.norms.items():
        if "output" in ports and not (norm.centred and norm.uniform()):
            return f"{norm.name} writes the stream, and its gain is not folded"
        if not norm.centred:
            return f"{norm.name} is an RMSNormalization of the same stream"
        if not folded and (bias := norm.bias_array()) is not None and bias.any():
            return f"{norm.name} keeps its bias"
    return ""


def _raise_opset(model: ir.Model, norms: list[Norm]) -> str:
    try:
        if any(n.fused for n in norms):
            opsets.require(model, _RMS_OPSET)
    except Unsupported as e:
        return f"RMSNormalization needs opset {_RMS_OPSET}: {e}"
    return ""


def _take_mean_away(norm: Norm) -> None:
    if norm.fused:
        node = norm.node
        kept = {k: a.value for k, a in node.attributes.items() if k in ("axis", "epsilon", "stash_type")}
        made = edit.new_node("RMSNormalization", node.inputs[:2], kept, before=node, origin=node)
        edit.like(made.outputs[0], node.outputs[0])
        inputs = list(node.inputs)
        edit.replace(node.outputs[0], made.outputs[0])
        edit.remove([node])
        edit.remove_unused(inputs)
    elif norm.centring is not None:
        sub = norm.centring
        inputs = list(sub.inputs)
        edit.replace(sub.outputs[0], norm.input)
        edit.remove([sub])
        edit.remove_unused(inputs)
