"""What a BatchNormalization knew of the layer before it, kept with that layer when a rule folds the two into one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.graph.statistics import write_statistics

Statistics = tuple[np.ndarray, np.ndarray]  # mean and standard deviation of each channel


def outputs(model: ir.Model) -> dict[str, Statistics]:
    """By the name of each BatchNormalization's output: mean and standard deviation of its channels in training."""
    return {
        node.outputs[0].name or "": known
        for node in edit.nodes(model)
        if node.op_type == "BatchNormalization" and node.domain == "" and (known := _statistics(node)) is not None
    }


def _statistics(node: ir.Node) -> Statistics | None:
    parts = [edit.constant(v) for v in node.inputs[1:5]]
    if any(p is None for p in parts):
        return None
    gamma, beta, _, var = (p.astype(np.float64) for p in parts if p is not None)
    return beta, abs(gamma) * np.sqrt(var / (var + node.attributes.get_float("epsilon", 1e-5)))


def keep(model: ir.Model, known: dict[str, Statistics]) -> None:
    """Note it with the nodes that make these outputs now."""
    for node in edit.nodes(model):
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and node.outputs[0].name in known:
            write_statistics(node, *known[node.outputs[0].name or ""])
