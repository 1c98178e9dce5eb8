"""What BatchNormalization has learned about values of a graph: found by data flow, whatever the order of the nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.contracts import PassReport
from graphpress.graph import edit
from graphpress.graph.statistics import read_statistics


@dataclass(frozen=True, eq=False)
class Learned:
    """Mean and standard deviation that training saw of one value.

    Attributes:
        value: Its name; channels are on axis 1.
        mean: float64 [channels].
        std: float64 [channels].
    """

    value: str
    mean: np.ndarray
    std: np.ndarray


def learned(model: ir.Model, report: PassReport) -> list[Learned]:
    """Every value of the main graph that a BatchNormalization reads, or that a folded one used to read.

    A value that several read is there once for each. What cannot be used is a skip in ``report``.
    """
    found = []
    for graph in edit.graphs(model):
        for node in graph:
            known = _of(node)
            if isinstance(known, str):
                report.skip(node, known)
            elif known is not None and graph is not model.graph:
                report.skip(node, "its statistics are of a value inside a branch, a loop or a function")
            elif known is not None:
                found.append(known)
    return found


def _of(node: ir.Node) -> Learned | str | None:
    """What the node knows; or why it cannot be used; or None for a node that knows nothing."""
    if node.op_type == "BatchNormalization" and node.domain == "":
        return _read(node)
    noted = read_statistics(node)
    if noted is None:
        return None
    return _checked(Learned(node.outputs[0].name or "", *noted))


def _read(node: ir.Node) -> Learned | str:
    """The statistics of a BatchNormalization that stands in the graph: they are of its input."""
    parts = [edit.constant(v) for v in node.inputs[3:5]]
    mean, var = parts if len(parts) == 2 else (None, None)
    if node.inputs[0] is None or mean is None or var is None:
        return "its statistics are not constant"
    if node.attributes.get_int("training_mode", 0):
        return "it is in training mode"
    with np.errstate(invalid="ignore"):
        return _checked(Learned(node.inputs[0].name or "", mean.astype(np.float64), np.sqrt(var.astype(np.float64))))


def _checked(known: Learned) -> Learned | str:
    finite = np.isfinite(known.mean).all() and np.isfinite(known.std).all()
    return known if finite else "its statistics are not finite"
