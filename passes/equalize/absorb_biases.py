"""``absorb-biases``: what a Relu hardly ever cuts off is taken from the bias before it and given to the one behind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import edit
from graphpress.graph.readers import only_reader
from graphpress.keys import STATISTICS
from graphpress.passes.structure.layers.linear import Linear, layers, linear
from graphpress.types import Numerics, Stage

DEVIATIONS = 3  # below the mean of a channel, from which on it hardly ever is


@dataclass(frozen=True)
class AbsorbBiases(Pass):
    """Bias absorption (Nagel et al., arXiv:1906.04721, section 4.1.3), to be put behind ``equalize-layers``.

    Of a channel that BatchNormalization left at mean b and deviation g, ``h = max(0, b - 3 g)`` is taken from the bias
    of the layer and, through the weights, added to that of the layers behind its Relu: the range of what stands between
    loses h. Exact where no value is below h, which 0.13 % of normal ones are. Needs the notes that folding
    BatchNormalization leaves. A convolution behind that pads its border would not see h there, and is a Skip.
    """

    name = "absorb-biases"
    numerics = Numerics.LOSSY
    needs = (Stage.FLOAT,)

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        """Rewrite biases of ``model``."""
        for view in layers(list(edit.nodes(model))):
            told = STATISTICS.get(view.node)
            if told is None:
                continue
            mean, std = (np.asarray(told[n], np.float64) for n in ("mean", "std"))
            h = np.maximum(0.0, mean - DEVIATIONS * std)
            if len(h) != view.shape[0] or not np.isfinite(h).all() or not h.any():
                continue
            behind = _behind(view)
            if isinstance(behind, str):
                report.skip(view.node, behind)
                continue
            for reader in behind:
                shift, old = _made_of(reader, h), reader.bias()
                reader.set_bias(shift if old is None else old + shift)
            bias = view.bias()
            view.set_bias(-h if bias is None else bias - h)
            STATISTICS.set(view.node, {**told, "mean": (mean - h).tolist()})
            report.changed += 1


def _behind(view: Linear) -> list[Linear] | str:
    """The layers that alone read the Relu that alone reads a layer, or why h cannot pass there."""
    relu = only_reader(view.output, "Relu")
    if relu is None:
        return "no Relu alone reads it"
    value = relu[0].outputs[0]
    if value.is_graph_output() or not value.uses():
        return "what its Relu gives is an output of the graph"
    found = list[Linear]()
    for node in value.consumers():
        made = linear(node)
        if isinstance(made, str):
            return f"{node.op_type} {node.name!r} reads its Relu"
        if any(edit.attribute(node, "pads") or ()) or edit.attribute(node, "auto_pad", "NOTSET") not in (
            "NOTSET",
            "VALID",
        ):
            return f"the border of {node.name!r} is padded with zeros"
        on_rows = node.op_type != "Conv" and view.node.op_type == "Conv"
        if on_rows or node.graph is not value.graph or view.shape[0] != made.shape[1] * made.groups:
            return f"{node.op_type} {node.name!r} reads other channels"
        found.append(made)
    return found


def _made_of(reader: Linear, h: np.ndarray) -> np.ndarray:
    """[out]: what a layer makes of a constant h [in]."""
    weight = reader.weight().astype(np.float64)
    taps = weight.reshape(*weight.shape[:2], -1).sum(2)
    parts = np.split(taps, reader.groups)
    return np.concatenate([w @ x for w, x in zip(parts, np.split(h, reader.groups), strict=True)])
